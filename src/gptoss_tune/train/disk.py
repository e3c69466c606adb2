"""A disk that fills up during a save: one message, and the checkpoints before it stay.

Other tools write into the checkpoint's own folder, so that the torn one is the newest and the next
resume takes it. Here it was staged, and what is staged can go.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from gptoss_tune.errors import GptossTuneError, MachineError
from gptoss_tune.train import checkpoints

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk_full(run: Path) -> Iterator[None]:
    """Turn a save that found no room into one error that says how much is missing.

    Whatever writes the files says it in its own words: ``OSError``, safetensors' error with the
    number of the operating system's, torch's about a position in an archive. So an error counts as
    a full disk when it says so, or when the disk has no room for another checkpoint. What was
    staged is removed; published checkpoints stay.

    Raises:
        MachineError: The disk is full, or a quota or limit of file sizes is reached.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, MachineError) else error
        staged = _bytes_of(run / checkpoints.STAGING)
        whole = max((_bytes_of(folder) for folder in checkpoints.published(run)), default=0)
        free = shutil.disk_usage(run).free
        says_so = getattr(cause, "errno", None) in _NO_ROOM or any(
            f"os error {number}" in str(cause) for number in _NO_ROOM
        )
        refused = isinstance(cause, GptossTuneError) or cause is None
        if refused or not (says_so or free < max(whole - staged, 1)):
            raise
        shutil.rmtree(run / checkpoints.STAGING, ignore_errors=True)
        newest = next(iter(checkpoints.published(run)), None)
        kept = f"{newest.name} is kept" if newest else "no checkpoint was saved before"
        size = f"about {_mib(whole)}" if whole else f"more than {_mib(staged)}"
        raise MachineError(
            f"{run}: no room for a checkpoint: it needs {size}, the disk has "
            f"{_mib(free + staged)} free, or a quota or limit of file sizes ends before that "
            f"({cause}). {kept}, nothing half-written was left; free space, then the same command "
            "continues"
        ) from error


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
