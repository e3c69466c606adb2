"""The folder of a run: who may write into it, and where a run goes on.

One folder holds one run. A folder that holds another run, or anything else, is never written to;
the same run is continued from its newest complete checkpoint.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tune.checkpoint.inside import refuse_links
from gptoss_tune.checkpoint.write import disk_errors
from gptoss_tune.errors import CheckpointError, MachineError, RecipeError
from gptoss_tune.recipe.schema import Recipe
from gptoss_tune.train import checkpoints
from gptoss_tune.train.record import RECORD

ADAPTER = "adapter"

# What may change between a run and its continuation without changing the result.
_MAY_DIFFER = {"train.resume", "train.save_total_limit", "train.save_steps", "train.logging_steps"}
_MAY_DIFFER_SECTIONS = ("evaluation.", "guard.", "export.", "tracking.", "world.")


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        folder: The run's folder, which exists.
        checkpoint: The checkpoint to continue from; ``None`` for a fresh start.
        notes: What the user should be told, such as damaged checkpoints that were passed over.
    """

    folder: Path
    checkpoint: Path | None
    notes: tuple[str, ...]


def claim(recipe: Recipe) -> Start:
    """Return where ``recipe`` starts, or refuse its output folder.

    Raises:
        RecipeError: The folder holds another run, a finished one, or something else.
        CheckpointError: A checkpoint was named and is damaged.
        MachineError: The folder cannot be written.
    """
    folder, resume = Path(recipe.train.output_dir), recipe.train.resume
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        content = [path for path in folder.iterdir() if path.name != ".gitignore"]
    refuse_links(folder)
    if resume not in ("auto", "never"):
        checkpoints.verify(Path(resume))
        return Start(folder, Path(resume), ())
    if not content:
        return Start(folder, None, ())
    record = _record(folder)
    if resume == "never":
        raise RecipeError(
            f"train.output_dir: {folder} holds a run already and train.resume is never; choose "
            "another folder, or continue it with train.resume=auto"
        )
    differences = _differences(record.get("recipe", {}), recipe.model_dump(mode="json"))
    if differences:
        raise RecipeError(
            f"train.output_dir: {folder} holds another run; it differs in\n  "
            + "\n  ".join(differences)
            + "\nchoose another folder, or set these back to continue that run"
        )
    if record.get("status") == "finished":
        raise RecipeError(
            f"train.output_dir: the run in {folder} is finished (adapter in {folder / ADAPTER}); "
            "choose another folder to train again"
        )
    found, passed_over = checkpoints.newest_complete(folder)
    notes = tuple(f"passed over: {reason}" for reason in passed_over)
    if found is None:
        notes += ("no complete checkpoint was found: the run starts again from step 0",)
    return Start(folder, found, notes)


def check_disk(folder: Path, adapter_bytes: int, keep: int) -> None:
    """Refuse to start a run whose checkpoints will not fit.

    Args:
        folder: The run's folder.
        adapter_bytes: Bytes of the adapters; a checkpoint holds them with two moments each.
        keep: How many checkpoints are kept; one more is being written beside them.

    Raises:
        MachineError: The disk has less room than that.
    """
    needed = adapter_bytes * (3 * (keep + 1) + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            f"{folder}: the run needs {needed / 2**30:.1f} GiB for its checkpoints and adapter, "
            f"the disk has {free / 2**30:.1f} GiB free; free space, lower "
            "train.save_total_limit, or choose another train.output_dir"
        )


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise RecipeError(
            f"train.output_dir: {folder} is not empty and holds no run of gptoss-tune; choose an "
            "empty or new folder"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({error}); move {folder} away, or restore the file"
        ) from error


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    old, new = dict(_leaves(before)), dict(_leaves(after))
    return [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and key not in _MAY_DIFFER
        and not key.startswith(_MAY_DIFFER_SECTIONS)
    ]


def _leaves(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, entry in value.items():
        if isinstance(entry, dict):
            leaves += _leaves(entry, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", entry))
    return leaves
