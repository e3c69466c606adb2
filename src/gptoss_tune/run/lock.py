"""The lock of a run's folder: one process at a time writes into it.

A launcher that is killed can leave its training running, and the same command is then given again.
Two runs would take turns in replacing each other's checkpoints. So rank 0 holds a POSIX record lock
on ``RUN/.lock`` for as long as it lives; the system takes it back however the process ends. A file
that merely names a process was the alternative: after ``kill -9`` somebody has to delete it. A lock
by ``flock`` is kept by forked workers, which can outlive the run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import stat
from pathlib import Path
from typing import IO

from gptoss_tune.errors import MachineError
from gptoss_tune.files.atomic import disk_errors
from gptoss_tune.files.regular import kind_of
from gptoss_tune.run.folder import RunFolder


class FolderLock:
    """Hold the lock on one folder, until the context ends."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._file: IO[str] | None = None
        self._path = Path()

    def __enter__(self) -> FolderLock:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Let others into the folder."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def take(self, folder: Path) -> tuple[str, ...]:
        """Lock ``folder``; return what the user should be told.

        Raises:
            MachineError: Another process trains in it, or the lock cannot be written.
        """
        lock = RunFolder(folder).lock
        with disk_errors(folder):
            while True:
                file = _opened(lock)
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    return (_without(folder, file, error),)
                if _is_at(file, lock):
                    break
                file.close()  # its holder has just left and taken the file along
            self._file, self._path = file, lock
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        return ()


def _opened(lock: Path) -> IO[str]:
    """Open the lock's file, which is made where it is not there.

    Raises:
        MachineError: A link, a pipe or a folder has its name.
    """
    opened = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        mode = lock.lstat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a link" if stat.S_ISLNK(mode) else kind_of(mode)
            raise MachineError(f"{lock}: is {kind}; a run keeps a file there, remove it")
    return open(os.open(lock, opened, 0o666), "a+", encoding="utf-8", errors="replace")


def _is_at(file: IO[str], path: Path) -> bool:
    # By its number: to open the file once more and close it would give the lock back.
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _without(folder: Path, file: IO[str], error: OSError) -> str:
    """Say why there is no lock: a note where the file system has none, else an error."""
    with file:
        file.seek(0)
        holder = file.read(200) or "another process"
    if error.errno not in (errno.EACCES, errno.EAGAIN):
        return f"{folder} cannot be locked ({error.strerror}): start no second run in it meanwhile"
    raise MachineError(
        f"train.output_dir: {holder} is training in {folder}; stop it or wait for its end and give "
        "this command again, or choose another folder. If it is gone for certain, as after the "
        f"crash of another machine, delete {RunFolder(folder).lock}"
    )
