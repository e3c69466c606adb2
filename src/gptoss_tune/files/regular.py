"""Regular files of a folder that anybody may have packed, opened so that reading them ends.

A pipe under the name of a file is waited at for ever, a device never ends, a sparse file of a
megabyte claims terabytes, and a link reads what lies elsewhere. Opening plainly and looking at what
comes was the alternative: a pipe without a writer does not even open.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from gptoss_tune.display import one_line
from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.paths import stays_inside


def open_regular(path: Path, *, largest: int, folder: Path | None = None) -> BinaryIO:
    """Open a regular file for reading, without waiting for anybody.

    Args:
        path: The file.
        largest: Bytes that it may have.
        folder: Which it must not leave by a link; ``None``: a link may lead anywhere.

    Raises:
        OSError: It is not there or cannot be opened.
        CheckpointError: It is a folder, a pipe or a device, is larger, or a link out of ``folder``.
    """
    if folder is not None:
        refuse_link_out(path, folder)
    _refuse_other(path, os.stat(path))  # before it is opened: some devices do things when opened
    descriptor = os.open(path, os.O_RDONLY | flag("O_NONBLOCK") | flag("O_CLOEXEC"))
    try:
        about = os.fstat(descriptor)
        _refuse_other(path, about)
        if about.st_size > largest:
            raise CheckpointError(
                f"{path}: has {about.st_size} bytes, at most {largest} are read; it is not what "
                "its name says"
            )
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def flag(name: str) -> int:
    """Return a flag for ``os.open``; none where the system has no such flag."""
    return getattr(os, name, 0)


def refuse_link_out(path: Path, folder: Path) -> None:
    """Refuse a file that a link leads out of ``folder``; one that is not there is left to others.

    Raises:
        CheckpointError: Names the link and where it leads.
    """
    if os.path.lexists(path) and not stays_inside(folder, path):
        raise CheckpointError(
            f"{path}: is a link to {one_line(os.path.realpath(path))} outside {folder}; refused, "
            "copy the file into the folder"
        )


def _refuse_other(path: Path, about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        kind = kind_of(about.st_mode)
        raise CheckpointError(f"{path}: is {kind}, no regular file; put the file itself there")


def kind_of(mode: int) -> str:
    """Return what a file of this mode is, in words: ``a pipe``, ``a folder``, ``a device``."""
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    return next((word for is_one, word in kinds if is_one(mode)), "a device")
