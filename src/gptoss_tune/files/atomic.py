"""Files and folders that are whole or absent: written beside their place, then renamed.

Nothing is written at its own name before it is complete, and the disk's errors say what is full.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.files.regular import flag
from gptoss_tune.files.strict_json import to_text


def to_json(value: object) -> str:
    """Return ``value`` as the indented JSON of checkpoint folders, keys sorted; null for NaN."""
    return to_text(value, indent=2, sort_keys=True, ascii_only=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8 so that the file is whole or as it was before.

    A lone surrogate, as the name of a file that is not UTF-8 holds, is spelled out.

    Raises:
        MachineError: The disk is full or cannot be written.
    """
    with replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Yield a new UTF-8 file that takes the place of ``path`` once it is whole and on the disk.

    Raises:
        MachineError: The disk is full or cannot be written.
    """
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        descriptor = create(part)
        try:
            # Lines end alike on every system: a job file is run elsewhere than where it is written.
            with open(
                descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="\n"
            ) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # or a power loss leaves the new name with no bytes
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def create(path: Path) -> int:
    """Return the descriptor of a new file; what has its name is removed, a link not followed.

    A run or a staging folder that others can write to may hold a link under a name that we are
    about to use; opening it plainly would write to what the link points at.
    """
    path.unlink(missing_ok=True)
    exclusive = os.O_CREAT | os.O_EXCL | flag("O_NOFOLLOW")
    return os.open(path, os.O_RDWR | flag("O_CLOEXEC") | flag("O_BINARY") | exclusive, 0o666)


def refuse_existing(out: Path) -> None:
    """Raise when ``out`` already holds something.

    Raises:
        CheckpointError: ``out`` is a file or a folder that is not empty.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise CheckpointError(
            f"{out}: already exists and is never overwritten; choose another output folder or "
            "remove this one"
        )


def staging_folder(out: Path) -> Path:
    """Return the hidden folder beside ``out`` in which ``out`` is prepared.

    Raises:
        CheckpointError: Its name is a link, which someone else put there: what it points at would
            be emptied.
    """
    folder = out.absolute().with_name(f".{out.name}.incomplete")
    if folder.is_symlink():
        raise CheckpointError(
            f"{folder}: is a link; nothing is written through it, remove it or choose another "
            "output folder"
        )
    return folder


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes ``out`` on success and vanishes on any error.

    For what is quick to redo; a merge keeps its staging folder to resume (``export.merge``).

    Raises:
        CheckpointError: ``out`` already holds something.
        MachineError: The disk is full or read-only.
    """
    refuse_existing(out)
    folder = staging_folder(out)
    with disk_errors(out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        with disk_errors(out):
            yield folder
            publish(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path) -> None:
    """Make everything in the finished ``folder`` durable, rename it to ``out``, and that as well.

    A name that survives a power loss must not stand for files whose bytes did not.
    """
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))
    if out.is_dir():
        out.rmdir()  # empty, or refuse_existing would have raised
    folder.rename(out)
    sync(out.absolute().parent)


def sync(path: Path) -> None:
    """Make a file or folder durable."""
    try:
        _flush(path, os.O_RDONLY)
    except PermissionError:
        if not path.is_dir():
            raise
        # Windows opens no folder; NTFS keeps the names in a journal of its own.
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        _flush(path, os.O_RDWR)  # Windows flushes only what is open for writing


def _flush(path: Path, access: int) -> None:
    descriptor = os.open(path, access)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one MachineError about ``path``."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full; free space or choose a folder on another disk",
            errno.EDQUOT: "the disk quota is used up; free space or choose another folder",
            errno.EFBIG: "a file of this size is not allowed here; lower the largest shard size",
            errno.EROFS: "the file system is read-only; choose another folder",
            errno.EACCES: "permission denied; choose a folder you may write to",
            errno.EPERM: "permission denied; choose a folder you may write to",
            errno.EEXIST: "something else of that name is there; choose another name",
            errno.ENOTDIR: "a part of its path is a file, not a folder; choose another path",
            errno.ENAMETOOLONG: "its name is too long for the file system; choose a shorter one",
            errno.EISDIR: "a folder has its name, or that name and .part; choose another name",
            errno.ELOOP: "its path is a circle of links; choose another path",
        }.get(error.errno or 0)
        folder = next((each for each in path.absolute().parents if each.is_dir()), Path("/"))
        if error.errno == errno.ENOSPC and free_names(folder) == 0:
            advice = f"the disk of {folder} has {NO_NAMES}; remove files or choose another disk"
        if error.errno == errno.ENOENT and folder != path.absolute().parent:
            advice = f"its folder is not there, {folder} is; create it or choose another path"
        if advice is None:
            raise
        raise MachineError(f"{path}: cannot be written: {advice}") from error


NO_NAMES = "no inodes left for another file, however much space is free"


def free_names(folder: Path) -> int | None:
    """Return how many files and folders the disk of ``folder`` has room for; None: it has no limit.

    A disk of a million small files can be full with most of its bytes free: its table of inodes is.
    """
    if not hasattr(os, "statvfs"):
        return None  # Windows, whose file systems make room for names as they come
    about = os.statvfs(folder)
    return about.f_favail if about.f_files else None
