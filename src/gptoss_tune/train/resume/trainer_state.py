"""``trainer_state.json`` of a checkpoint, looked at before Transformers reads it.

Transformers makes its ``TrainerState`` of whatever the file holds: a key that it does not know, a
list, or a number where it divides end in a traceback, and another step than the checkpoint's is
trained on from. A checkpoint comes with a run folder, and that may come from anyone; its manifest
tells damage, not forgery.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainerState

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.strict_json import read_object, refuse_other_kinds
from gptoss_tune.run.checkpoints import step_of

_NAME = "trainer_state.json"
_COUNTS = ("max_steps", "logging_steps", "eval_steps", "save_steps", "train_batch_size")
_KINDS: dict[str, Any] = {
    **dict.fromkeys((*_COUNTS, "global_step", "num_train_epochs", "num_input_tokens_seen"), int),
    **dict.fromkeys(("epoch", "total_flos"), float),
    "log_history": [{"step": int, "epoch": float, "loss": float, "eval_loss": float}],
    "stateful_callbacks": {},
}
_WANTED = ("global_step", "epoch", "log_history")
_NEVER = ("best_metric", "best_global_step", "best_model_checkpoint", "trial_name", "trial_params")
"""What no training of ours sets, and a path among it."""


def check_trainer_state(checkpoint: Path) -> None:
    """Refuse a checkpoint whose trainer state no training wrote at its step.

    Raises:
        CheckpointError: The file is missing, is not JSON, or holds another step or other kinds.
    """
    path = checkpoint / _NAME
    try:
        found = read_object(path, folder=checkpoint, take_constants=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; resume from another checkpoint, or train in a new folder"
        ) from None
    refuse_other_kinds(path, found, _KINDS)
    known = {field.name for field in fields(TrainerState)}
    odd = [
        *(f"has the key {key[:60]!a}" for key in found if key not in known),
        *(f"has {found[key]!a:.60} as {key}" for key in _NEVER if found.get(key) is not None),
        *(f"has {found.get(key)!s:.60} as {key}" for key in _COUNTS if (found.get(key) or 0) < 1),
        *(f"has no {key}" for key in _WANTED if found.get(key) is None),
    ]
    odd += [
        f"has an entry {n} of log_history without numbers"
        for n, row in enumerate(found.get("log_history") or ())
        if row is None or any(row.get(key, 0) is None for key in ("loss", "step"))
    ]
    if not odd and found["global_step"] != step_of(checkpoint):
        odd = [f"is of step {found['global_step']!s:.60}"]
    if not odd and not math.isfinite(found["epoch"]):
        odd = [f"has {found['epoch']} as epoch"]
    if odd:
        raise CheckpointError(
            f"{path}: {odd[0]}, which no training writes for {checkpoint.name}; resume from "
            "another checkpoint, or train in a new folder"
        )
