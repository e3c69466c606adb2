"""The process that writes into a run's folder, as the lock's file names it, if it still lives.

For who looks at a run from outside. The lock itself cannot be asked without taking it, and a file
that was left behind by a killed process names a number that another process may have by now. So the
process must be of this machine and older than the file it wrote.
"""

from __future__ import annotations

import contextlib
import platform
import re
from pathlib import Path

import psutil

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.regular import open_regular
from gptoss_tune.run.folder import RunFolder

_HOLDER = re.compile(r"process (\d{1,10}) on (.+)")
_LARGEST = 4096
_SLACK_S = 5.0
"""A process's start is told by another clock than a file's time."""


def holder_on(folder: Path) -> str | None:
    """Return the host whose process says that it writes here; ``None`` where none does."""
    found = _said(folder)
    return None if found is None else found[1]


def holder(folder: Path) -> psutil.Process | None:
    """Return the process of this machine that writes into ``folder``, if it lives."""
    found = _said(folder)
    if found is None or found[1] != platform.node():
        return None
    number, _, written = found
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(number)
        if process.create_time() <= written + _SLACK_S and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def _said(folder: Path) -> tuple[int, str, float] | None:
    """Return process, host and time of writing of the lock's file."""
    lock = RunFolder(folder).lock
    try:
        with open_regular(lock, largest=_LARGEST, folder=folder) as file:
            match = _HOLDER.fullmatch(file.read(_LARGEST).decode("utf-8", "replace").strip())
            return match and (int(match[1]), match[2], lock.stat().st_mtime)
    except (OSError, CheckpointError):
        return None
