"""A lock on a file: one process at a time, on Linux, macOS and Windows.

The system holds it for an open file and takes it back however the process ends, so no lock is ever
stale; a file that merely names a process has to be deleted by somebody after ``kill -9``. The file
says who holds it, and goes away with the lock.

A forked worker inherits open files, would keep the lock and can outlive the run that took it; so a
child closes its copy as soon as it is forked. Record locks, which no child inherits, were the
alternative: Windows has none, and they do not keep two threads of a process apart.
"""

from __future__ import annotations

import contextlib
import os
import platform
import stat
import weakref
from pathlib import Path

from filelock import lock_descriptor

from gptoss_tune.errors import MachineError
from gptoss_tune.files.regular import flag, kind_of

_LONGEST_NOTE = 200
_LOCKED_BYTES = 1
"""At the start of the file; while they are locked, Windows lets nobody else read them."""


class LockHeld(Exception):
    """Another process, or another lock of this one, has it.

    Attributes:
        holder: ``process 17 on box``, or ``another process`` where the file does not say.
    """

    def __init__(self, holder: str) -> None:
        """Say that ``holder`` has it."""
        super().__init__(holder)
        self.holder = holder


class FileLock:
    """The lock on one file, from ``take`` to the end of the context, or of the process."""

    def __init__(self, path: Path) -> None:
        """Hold nothing yet.

        Args:
            path: The file, in a folder that exists; it is made and removed with the lock.
        """
        self.path = path
        self._descriptor: int | None = None

    def __enter__(self) -> FileLock:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Let others have it."""
        self.release()

    def take(self) -> str | None:
        """Take the lock, without waiting.

        Returns:
            ``None`` once it is held; else why this disk or system has no locks.

        Raises:
            LockHeld: Another has it.
            OSError: The file cannot be opened or written.
            MachineError: A link, a pipe or a folder has its name.
        """
        while True:
            descriptor = _opened(self.path)
            try:
                locked = lock_descriptor(descriptor, blocking=False)
            except OSError as error:
                os.close(descriptor)
                return error.strerror or str(error)
            if not locked:
                holder = _note_of(descriptor)
                os.close(descriptor)
                raise LockHeld(holder)
            if _is_at(descriptor, self.path):
                break
            os.close(descriptor)  # its holder has just left and taken the file along
        self._descriptor = descriptor
        _held.add(self)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b" " * _LOCKED_BYTES + _note().encode())
        return None

    def release(self) -> None:
        """Let others have it; nothing happens where it is not held."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        _held.discard(self)
        try:
            # While it is held: who waits at the file then sees that it has gone.
            self.path.unlink(missing_ok=True)
            os.close(descriptor)
        except PermissionError:  # Windows removes no open file
            os.close(descriptor)
            with contextlib.suppress(OSError):  # another opened it in between, and keeps it
                self.path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Close a forked child's copy, which leaves the lock to its parent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


# A fork copies all locks of a process and can be asked for by any library: only a list of them says
# what to close.
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def _opened(path: Path) -> int:
    """Open the lock's file, which is made where it is not there."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a link" if stat.S_ISLNK(mode) else kind_of(mode)
            raise MachineError(f"{path}: is {kind}; a lock's file is kept there, remove it")
    safely = flag("O_NOFOLLOW") | flag("O_NONBLOCK") | flag("O_CLOEXEC") | flag("O_BINARY")
    return os.open(path, os.O_RDWR | os.O_CREAT | safely, 0o666)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _note() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def _note_of(descriptor: int) -> str:
    os.lseek(descriptor, _LOCKED_BYTES, os.SEEK_SET)
    note = os.read(descriptor, _LONGEST_NOTE).decode("utf-8", errors="replace")
    return note.strip() or "another process"
