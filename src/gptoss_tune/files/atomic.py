"""Files and folders that are whole or absent: written beside their place, then renamed.

Nothing is written at its own name before it is complete, and the disk's errors say what is full.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gptoss_tune.errors import CheckpointError, MachineError


def to_json(value: object) -> str:
    """Return ``value`` as the indented JSON of checkpoint folders, keys sorted."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8 so that the file is whole or as it was before.

    Raises:
        MachineError: The disk is full or cannot be written.
    """
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        try:
            with open(create(part), "w", encoding="utf-8") as file:
                file.write(text)
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
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


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
            _sync(Path(parent) / name)
        _sync(Path(parent))
    if out.is_dir():
        out.rmdir()  # empty, or refuse_existing would have raised
    folder.rename(out)
    _sync(out.absolute().parent)


def _sync(path: Path) -> None:
    """Make a file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
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
        }.get(error.errno or 0)
        if advice is None:
            raise
        raise MachineError(f"{path}: cannot be written: {advice}") from error
