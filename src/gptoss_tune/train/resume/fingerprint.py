"""The fingerprint of a run: everything that its result depends on, as one flat mapping.

Settings stand under their names in the recipe. A setting that acts only through something that can
be looked at stands for what it led to: the rows that were rendered and not the file's name, the
engine that was chosen and not ``auto``, the number of steps and not the epochs. Then a data set
that moved is the same data set, and one that was edited in place is another.

The recipe's text was the alternative: it is the same after the file it names was rewritten, after a
library was upgraded, and on a machine that chooses other kernels.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gptoss_tune import __version__
from gptoss_tune.environments.load import files_of
from gptoss_tune.files.digest import digest_of, sha256_of
from gptoss_tune.model.build import engines
from gptoss_tune.model.initial_adapter import initial_adapter_folder
from gptoss_tune.recipe import Recipe
from gptoss_tune.recipe.dump import by_name
from gptoss_tune.recipe.schema import GrpoSection, MethodSection, Parallelism, TrainSection
from gptoss_tune.recipe.schema.schedule import schedule_arguments
from gptoss_tune.train.best.compared import EARLY_STOPPING, KEEP_BEST, compared_entries
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter_config import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from datasets import Dataset

    from gptoss_tune.environments.environment import Environment

TRAINED_COLUMNS = (
    *("input_ids", "loss_weights", "channels", "position_ids", "phase"),
    *("branches", "samples", "kl_input_ids", "kl_loss_weights", "kl_position_ids"),
    "task",
)
"""Columns of the data that training reads; others are for counting and reports."""
_ROWS_AT_ONCE = 1024

ACTS_THROUGH = {
    "model.name_or_path": "base.config, base.content and tokenizer",
    "model.revision": "base.config, base.content and tokenizer",
    "model.backend": "engine.experts",
    "model.attention": "engine.attention",
    "lora.init_from": "init_from",
    "train.max_steps": "steps",
    "train.num_train_epochs": "steps",
    "train.per_device_train_batch_size": "batch",
    "train.gradient_accumulation_steps": "batch",
    "train.expert_tile": "expert_tile",
    "method.prompts_per_step": "batch",
}
"""Settings that act only through another entry, which is compared in their place."""

FREE = {
    "train.output_dir": "a run that was moved is the same run",
    "train.resume": "says where to start, not what to compute",
    "train.save_steps": "saving computes nothing",
    "train.save_total_limit": "saving computes nothing",
    "train.logging_steps": "logging reads sums that training does not",
    "train.auto_find_batch_size": "a step keeps its rows",
    "method.server_url": "a server that was moved is the same server",
    "method.server_folder": "a place for weights on their way",
    "method.mismatch_kl_limit": "watches; a run beyond it is stopped",
    "train.eval_steps": "evaluation changes no weight, and training draws no random number",
}
"""Settings that change no weight, with the reason."""
_ARGUMENTS = "train.lr_scheduler_kwargs"
_WHOLE = tuple(f"{name}." for name in (_ARGUMENTS, KEEP_BEST, EARLY_STOPPING))
"""Settings of several values that are one entry each."""
FREE_SECTIONS = {
    "guard": "watches; what is not finite is left out whatever it says",
    "evaluation": "reads the model",
    "export": "comes after the run",
    "tracking": "names places for metrics",
    "distributed": "num_processes acts through batch; strategy and context_parallel stand there",
}


@dataclass(frozen=True)
class Place:
    """Where a run runs.

    Attributes:
        processes: Ranks.
        strategy: How they share the model.
        device: Of rank 0.
        context_parallel: How many of them share a row.
        expert_tile: Tokens that go through the experts at a time; ``None``: all.
    """

    processes: int
    strategy: Parallelism
    device: torch.device
    context_parallel: int = 1
    expert_tile: int | None = None

    @property
    def data_parallel(self) -> int:
        """How many groups of ranks train rows of their own."""
        return self.processes // self.context_parallel


def fingerprint(
    recipe: Recipe,
    base: Checkpoint,
    train_set: Dataset,
    eval_set: Dataset | None,
    place: Place,
    environment: str | None = None,
) -> dict[str, Any]:
    """Return the fingerprint of a run: names to JSON values.

    Args:
        recipe: What is trained.
        base: Its opened base; all its bytes are hashed, unless that was done before.
        train_set: The rendered rows; all are read, 0.6 to 1.0 GB/s on one core (2026-11-23).
        eval_set: Likewise, if there are any.
        place: Where it runs.
        environment: What plays its episodes, of ``environment_source``; ``None``: a built-in one.

    Raises:
        MachineError: An engine was asked for by name and cannot run here.
        CheckpointError: The adapter to start from is not there.
    """
    settings = {
        name: value
        for name, value in by_name(recipe.model_dump(mode="json")).items()
        if name not in FREE
        and name not in ACTS_THROUGH
        and name.partition(".")[0] not in FREE_SECTIONS
    }
    # One entry, whatever its kind: all, or how they are chosen.
    asked = recipe.lora.model_dump(mode="json", exclude_none=True)["experts"]
    settings = {name: v for name, v in settings.items() if not name.startswith("lora.experts.")}
    settings["lora.experts"] = asked if asked == "all" else json.dumps(asked, sort_keys=True)
    settings = {name: v for name, v in settings.items() if not name.startswith(_WHOLE)}
    given = schedule_arguments(recipe.train.lr_scheduler_kwargs)
    settings[_ARGUMENTS] = json.dumps(given, sort_keys=True) if given else None
    settings |= compared_entries(recipe.train, recipe.method, recipe.data, recipe.evaluation)
    weights = base.fingerprint()
    tokenizer = base.path / "tokenizer.json"
    start = recipe.lora.init_from
    device = place.device
    model = recipe.model
    in_nf4 = "nf4" in (model.linear_precision, model.head_precision)
    versions = _versions(in_nf4 or recipe.train.optim != "adamw", device)
    step_rows = batch(recipe.train, recipe.method, place.data_parallel)
    chosen = engines(recipe.model, base, device, deterministic=recipe.train.deterministic)
    return {
        **settings,
        "base.config": weights["config"],
        "base.weights": weights["weights"],
        "base.content": weights["content"],
        "tokenizer": sha256_of(tokenizer) if tokenizer.is_file() else None,
        "init_from": start and sha256_of(initial_adapter_folder(Path(start)) / ADAPTER_WEIGHTS),
        "data.train_rows": rows_hash(train_set),
        "data.eval_rows": None if eval_set is None else rows_hash(eval_set),
        "environment": environment,
        "batch": step_rows,
        "steps": steps(recipe.train, len(train_set), step_rows),
        **{f"engine.{name}": code for name, code in chosen.items()},
        **{f"versions.{name}": version for name, version in versions.items()},
        "processes": place.processes,
        "strategy": place.strategy,
        "context_parallel": place.context_parallel,
        "expert_tile": place.expert_tile,
        "device": device_name(device),
    }


def device_name(device: torch.device) -> str:
    """Return the name of a GPU's model, else the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def environment_source(spec: str, made: Callable[[], Environment]) -> str:
    """Return ``module:Class`` with the sha256 of the files that it is, or of what they have.

    Args:
        spec: As it was named.
        made: The class.
    """
    digests = [sha256_of(path) for path in files_of(spec, made)]
    if not digests:
        return spec
    return f"{spec}, sha256 {digests[0] if len(digests) == 1 else digest_of(digests)}"


def batch(train: TrainSection, method: MethodSection, data_parallel: int) -> int:
    """Return the rows of an optimizer step, of so many groups of processes with own rows.

    Rows of grpo are prompts, and a step has as many on any number of processes.
    """
    if isinstance(method, GrpoSection):
        return method.prompts_per_step
    return train.per_device_train_batch_size * train.gradient_accumulation_steps * data_parallel


def steps(train: TrainSection, rows: int, step_rows: int) -> int:
    """Return the optimizer steps of the whole run, as the trainer counts them."""
    if train.max_steps is not None:
        return train.max_steps
    assert train.num_train_epochs is not None  # the recipe has one of the two
    return math.ceil(train.num_train_epochs * max(1, math.ceil(rows / step_rows)))


def rows_hash(dataset: Dataset) -> str:
    """Return the number of rows and the sha256 of everything training reads, in their order.

    It depends neither on files and their names nor on how the rows are stored.
    """
    digest = hashlib.sha256()
    names = [name for name in TRAINED_COLUMNS if name in dataset.column_names]
    columns = dataset.select_columns(names).with_format("arrow")
    tables: Any = columns.iter(batch_size=_ROWS_AT_ONCE)
    for table in tables:
        for name in names:
            column = table[name].combine_chunks()
            digest.update(f"{name} {column.type} {len(column)}\n".encode())
            if hasattr(column, "value_lengths"):
                digest.update(_bytes(column.value_lengths()))
                column = column.flatten()
            digest.update(_bytes(column))
    return f"{len(dataset)} rows, sha256 {digest.hexdigest()}"


def _bytes(column: Any) -> memoryview:
    return np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).view(np.uint8).data


def _versions(with_bitsandbytes: bool, device: torch.device) -> dict[str, str]:
    # NumPy draws the order of the rows.
    names = ["numpy", "torch", "transformers", "peft", "trl", "accelerate"]
    if device.type == "cuda":
        names.append("triton")
    if with_bitsandbytes:
        names.append("bitsandbytes")
    return {
        "gptoss-tune": __version__,
        **{name: importlib.metadata.version(name) for name in names},
    }
