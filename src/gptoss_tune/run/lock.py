"""The lock of a run's folder: one process at a time writes into it.

A launcher that is killed can leave its training running, and the same command is then given again.
Two runs would take turns in replacing each other's checkpoints. So rank 0 holds ``RUN/.lock`` for
as long as it lives (``files.locking``).
"""

from __future__ import annotations

from pathlib import Path

from gptoss_tune.errors import MachineError
from gptoss_tune.files.atomic import disk_errors
from gptoss_tune.files.locking import FileLock, LockHeld
from gptoss_tune.run.folder import RunFolder


class FolderLock:
    """Hold the lock on one folder, until the context ends."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._lock: FileLock | None = None

    def __enter__(self) -> FolderLock:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Let others into the folder."""
        if self._lock is not None:
            self._lock.release()

    def take(self, folder: Path) -> tuple[str, ...]:
        """Lock ``folder``; return what the user should be told.

        Raises:
            MachineError: Another process trains in it, or the lock cannot be written.
        """
        lock = FileLock(RunFolder(folder).lock)
        try:
            with disk_errors(folder):
                reason = lock.take()
        except LockHeld as error:
            raise MachineError(
                f"train.output_dir: {error.holder} is training in {folder}; stop it or wait for "
                "its end and give this command again, or choose another folder. If it is gone for "
                f"certain, as after the crash of another machine, delete {lock.path}"
            ) from None
        if reason is not None:
            return (f"{folder} cannot be locked ({reason}): start no second run in it meanwhile",)
        self._lock = lock
        return ()
