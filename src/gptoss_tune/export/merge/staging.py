"""The hidden folder in which a merge is prepared, and what may stop it there.

The folder holds what the merge was made of (``plan.json``). Another base, adapter or format does
not continue it but starts again.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptoss_tune.errors import MachineError, say_once
from gptoss_tune.export.merge.options import MergeOptions, TooLittleSurvives
from gptoss_tune.export.merge.quantize import Survival, total_share
from gptoss_tune.files.atomic import disk_errors, to_json, write_text
from gptoss_tune.files.locking import FileLock, LockHeld

PLAN = "plan.json"


@contextlib.contextmanager
def staging(
    folder: Path, identity: dict[str, Any], worth_keeping: Callable[[], bool]
) -> Iterator[None]:
    """Hold the staging folder, emptied unless it belongs to this very merge.

    The lock's file lies beside the folder: Windows renames no folder in which a file is open.

    Args:
        folder: The hidden folder.
        identity: Everything the resulting bytes depend on.
        worth_keeping: Asked after an error: whether a next run could use what is there.

    Raises:
        MachineError: Another process is writing it.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")) as lock:
        try:
            with disk_errors(lock.path):
                reason = lock.take()
        except LockHeld as error:
            raise MachineError(
                f"{folder}: another merge is writing it ({error.holder}); wait for it or choose "
                "another output"
            ) from None
        if reason is not None:
            say_once(f"{folder} cannot be locked ({reason}): start no second merge in it meanwhile")
        _keep_only_this_merge(folder, to_json(identity))
        try:
            yield
        except BaseException:
            if not worth_keeping():
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _keep_only_this_merge(folder: Path, identity: str) -> None:
    """Empty the folder unless it was begun by a merge of the same identity."""
    plan = folder / PLAN
    with disk_errors(folder):
        if not plan.exists() or plan.read_text(encoding="utf-8") != identity:
            for old in folder.iterdir():
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            write_text(plan, identity)
        for part in folder.glob("*.part"):
            part.unlink()


def check_room(folder: Path, needed: int) -> None:
    """Refuse to start what cannot end.

    Raises:
        MachineError: The disk has less room than the ``needed`` bytes.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        # As many digits as tell the two apart, of which nine are single bytes.
        told = [(f"{needed / 1e9:.{n}f}", f"{free / 1e9:.{n}f}") for n in range(1, 10)]
        lacking, there = next(pair for pair in told if pair[0] != pair[1])
        raise MachineError(
            f"{folder.parent}: the merge needs {lacking} GB more, the disk has {there} GB free; "
            "free space or choose a folder on another disk"
        )


def survival_report(survivals: Sequence[Survival]) -> dict[str, Any]:
    """Return the survival of every changed stack and of all together."""
    return {
        "total": total_share(survivals),
        "stacks": [survival.as_dict() for survival in survivals],
    }


def refuse_loss(
    survival: dict[str, Any], options: MergeOptions, folder: Path, dense_format: str
) -> None:
    """Stop when the result would be the base in disguise.

    Args:
        survival: ``survival_report``.
        options: What is wanted.
        folder: Where what was computed is kept.
        dense_format: What loses nothing, as ``merge --format`` calls it.

    Raises:
        TooLittleSurvives: Less of the change survives than ``options`` wants.
    """
    if not survival["stacks"] or options.accept_loss or survival["total"] >= options.min_survival:
        return
    worst = min(survival["stacks"], key=lambda stack: stack["survived"])
    raise TooLittleSurvives(
        f"only {survival['total']:.1%} of the experts' change survives MXFP4 (least: "
        f"{worst['survived']:.1%} in {worst['module']}), {options.min_survival:.0%} is wanted; the "
        "result would act like the base. Recover it with --calibrate FILE, train with "
        f"lora.merge_aware=true, export with --format {dense_format}, or take it as it is with "
        f"--accept-loss. What was computed is kept in {folder}",
        survival["total"],
    )
