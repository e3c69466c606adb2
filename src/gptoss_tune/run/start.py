"""Claiming a run's folder: who may write into it, and from which checkpoint it resumes.

One folder holds one run. A folder that holds another run, or anything else, is never written to;
the same run is continued from its newest complete checkpoint.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError, MachineError, RecipeError
from gptoss_tune.files.atomic import disk_errors
from gptoss_tune.files.paths import refuse_links
from gptoss_tune.plan.disk import RunFiles
from gptoss_tune.recipe.schema import TrainSection
from gptoss_tune.run import checkpoints
from gptoss_tune.run.folder import LOCK, RECORD, WANDB, RunFolder
from gptoss_tune.run.lock import FolderLock
from gptoss_tune.run.record import read_record

_NOTHING = {".gitignore", LOCK, f"{RECORD}.part"}
"""What an empty folder may hold: a run's first file is its record, here killed in the writing."""
_LEFT_LINKS = (f"{WANDB}/*run-*/logs/debug-core.log",)
"""Links out of the run's folder that wandb leaves behind, to its own log; nobody writes there."""


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        folder: The run's folder, which exists.
        checkpoint: The checkpoint to continue from; ``None`` for a fresh start.
        notes: What the user should be told, such as damaged checkpoints that were passed over.
        run_id: The run's own, which its checkpoints carry.
        step: Steps made so far.
        before: Fingerprint of what is continued; ``None`` in an empty folder.
        changes: What was allowed to differ in earlier continuations, as in ``run.json``.
    """

    folder: Path
    checkpoint: Path | None
    notes: tuple[str, ...]
    run_id: str
    step: int = 0
    before: dict[str, Any] | None = None
    changes: tuple[dict[str, Any], ...] = ()


def claim(train: TrainSection, lock: FolderLock) -> Start:
    """Lock the output folder and return where the run starts, or refuse the folder.

    Args:
        train: Names the folder, and where to resume.
        lock: Taken once the folder is known to be empty or a run's; nothing else is written there.

    Raises:
        RecipeError: The folder holds another run, a finished one, or something else.
        CheckpointError: A checkpoint was named and is damaged.
        MachineError: The folder cannot be written, or another process trains in it.
    """
    folder, resume = Path(train.output_dir), train.resume
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        content = _content(folder)
    _refuse_foreign(folder, content)
    notes = lock.take(folder)
    record = _continued_record(train) if content else None
    if resume not in ("auto", "never"):
        return _named(folder, Path(resume).resolve(), notes, record)
    if record is None:
        return Start(folder, None, notes, secrets.token_hex(8))
    found, passed_over = checkpoints.newest_complete(folder, record["run_id"])
    notes += tuple(f"passed over: {reason}" for reason in passed_over)
    if found is None:
        notes += ("no complete checkpoint was found: the run starts again from step 0",)
        return Start(
            folder,
            None,
            notes,
            record["run_id"],
            0,
            record["fingerprint"],
            tuple(record["changes"]),
        )
    return _continued(folder, *found, notes, record)


def refuse_folder(train: TrainSection) -> None:
    """Refuse an output folder that ``claim`` would refuse; writes nothing and takes no lock.

    Args:
        train: Names the folder, and where to resume.

    Raises:
        RecipeError: As ``claim``; or the path leads through a file.
        CheckpointError: The checkpoint to resume is no folder of one.
        MachineError: The folder cannot be made, or not be written.
    """
    folder = Path(train.output_dir)
    if train.resume not in ("auto", "never"):
        checkpoint = Path(train.resume)
        if not checkpoint.is_dir():
            raise CheckpointError(
                f"train.resume: {checkpoint}: no such folder; name a checkpoint, as in "
                "runs/first/checkpoint-100, or set it to auto"
            )
        checkpoints.step_of(checkpoint.resolve())
    there = existing_part(folder)
    if not there.is_dir():
        raise RecipeError(
            f"train.output_dir: {there} is a file; expected a folder, or a place for a new one"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise MachineError(
            f"train.output_dir: no right to write into {there}; choose another folder"
        )
    if there != folder:
        return
    with disk_errors(folder):
        content = _content(folder)
    _refuse_foreign(folder, content)
    if content:
        _continued_record(train)


def existing_part(path: Path) -> Path:
    """Return a path, or the nearest of the folders above it that is there."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _content(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in _NOTHING]


def _refuse_foreign(folder: Path, content: list[Path]) -> None:
    """Refuse a folder that holds something else than a run."""
    refuse_links(folder, _LEFT_LINKS)
    if content and not RunFolder(folder).record.exists():
        raise RecipeError(
            f"train.output_dir: {folder} is not empty and holds no run of gptoss-tune; choose an "
            "empty or new folder"
        )


def _continued_record(train: TrainSection) -> dict[str, Any]:
    """Return the record of the run that the folder holds, if that may be continued."""
    folder = Path(train.output_dir)
    record = _record(folder)
    if train.resume == "never":
        raise RecipeError(
            f"train.output_dir: {folder} holds a run already and train.resume is never; choose "
            "another folder, or continue it with train.resume=auto"
        )
    if record.get("status") == "finished":
        raise RecipeError(_finished(folder, train))
    return record


def _finished(folder: Path, train: TrainSection) -> str:
    """Return what a finished run is told that is started once more, and how to train it longer."""
    newest = next(iter(checkpoints.published(folder)), None)
    longer = ""
    length = "max_steps" if train.max_steps is not None else "num_train_epochs"
    if newest is not None:
        longer = (
            f", or continue its checkpoint with its optimizer and a schedule of more steps: "
            f"train.output_dir=NEW train.resume={newest} train.{length}=MORE --allow-change steps"
        )
    return (
        f"train.output_dir: the run in {folder} is finished (adapter in "
        f"{RunFolder(folder).adapter}); choose another folder to train again. To train it longer, "
        f"start from its adapter with a fresh optimizer: train.output_dir=NEW "
        f"lora.init_from={folder}{longer}"
    )


def _named(
    folder: Path, checkpoint: Path, notes: tuple[str, ...], record: dict[str, Any] | None
) -> Start:
    """Start from a checkpoint that the recipe names: this run's, or another's in a new folder."""
    step = checkpoints.step_of(checkpoint)
    manifest = checkpoints.verify(checkpoint, None if record is None else record["run_id"])
    newer = [path for path in checkpoints.published(folder) if checkpoints.step_of(path) > step]
    if newer:
        raise RecipeError(
            f"train.resume: {checkpoint} is older than {newer[0]}, which the run would write "
            "again; continue from the newest with train.resume=auto, move the newer ones away, or "
            "choose another train.output_dir"
        )
    return _continued(folder, checkpoint, manifest, notes, record)


def _continued(
    folder: Path,
    checkpoint: Path,
    manifest: checkpoints.Manifest,
    notes: tuple[str, ...],
    record: dict[str, Any] | None,
) -> Start:
    before = manifest.facts.get("fingerprint")
    if not isinstance(before, dict):
        raise CheckpointError(
            f"{checkpoint}: its manifest does not say what it was trained with; start again in "
            "another folder"
        )
    return Start(
        folder,
        checkpoint,
        notes,
        secrets.token_hex(8) if record is None else record["run_id"],
        checkpoints.step_of(checkpoint),
        before,
        () if record is None else tuple(record["changes"]),
    )


def check_disk(folder: Path, files: RunFiles) -> None:
    """Refuse to start a run whose checkpoints will not fit.

    Args:
        folder: The run's folder; what its checkpoints take already need not be free.
        files: What the run writes, as a plan counts it.

    Raises:
        MachineError: The disk has less room than that.
    """
    there = sum(
        path.stat().st_size
        for checkpoint in checkpoints.published(folder)
        for path in checkpoint.rglob("*")
        if path.is_file()
    )
    needed = files.total - min(there, files.checkpoint * (files.checkpoints - 1))
    free = shutil.disk_usage(existing_part(folder)).free
    if free < needed:
        raise MachineError(
            f"{folder}: the run needs {needed / 2**30:.1f} GiB for its checkpoints and adapter, "
            f"the disk has {free / 2**30:.1f} GiB free; free space, lower "
            "train.save_total_limit, or choose another train.output_dir"
        )


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = read_record(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_way_on(folder)}") from error
    missing = [key for key in ("run_id", "fingerprint", "changes") if record.get(key) is None]
    if missing:
        raise CheckpointError(
            f"{RunFolder(folder).record}: does not say {', '.join(missing)}, which a run writes at "
            f"its start; it is of another version or damaged, move {folder} away or restore the "
            f"file{_way_on(folder)}"
        )
    return record


def _way_on(folder: Path) -> str:
    """Return how to go on without a record: a complete checkpoint needs none in a new folder."""
    found, _ = checkpoints.newest_complete(folder)
    if found is None:
        return ""
    return (
        f". Without it, the run goes on from {found[0].name} in a new folder: add "
        f"{shlex.quote(f'train.resume={found[0]}')} train.output_dir=NEW"
    )
