"""JSON lines of a run, its metrics first: written whole, cut back on a resume, read by one reader.

A line is one object and is flushed at once, so a killed run leaves at most one torn line, the last.
Several read these files, and a damaged line means something else to each: ``reproduce`` compares
nothing without it, a page shows the others. So the reader hands each line that is none to its
caller, who raises (``refusing``) or counts.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.files.atomic import disk_errors, replacing
from gptoss_tune.files.regular import flag, kind_of, open_regular
from gptoss_tune.files.strict_json import parse, parse_unchecked

LONGEST_LINE = 16 << 20
"""Bytes; a line about the experts of gpt-oss-120b has 40 KB."""
LARGEST_READ = 1 << 30
"""Bytes of a file whose lines are all wanted; ten thousand lines about those experts are less."""
_LARGEST_KEPT = 64 << 30
"""Bytes of a file that a run goes on with: far more than a disk wants, less than a sparse file."""
Damaged = Callable[[int, Exception], None]
"""What a damaged line costs: called with its number, from 1, and the reason."""


def read_lines(
    path: Path, damaged: Damaged, *, strict: bool = True, pass_over_blank: bool = False
) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each line, one line in memory at a time.

    Args:
        path: The file.
        damaged: Called for a line that is no JSON; when it returns, the line is passed over.
        strict: Bounds as in ``strict_json.parse``; else whatever Python reads, such as NaN.
        pass_over_blank: A line of white space, as an editor leaves one, is no damage.

    Raises:
        OSError: The file cannot be read.
        CheckpointError: It is a link out of its folder, no regular file, or over a GiB.
    """
    read = parse if strict else parse_unchecked
    for number, line in _bounded_lines(path, damaged, LARGEST_READ):
        if pass_over_blank and not line.strip():
            continue
        try:
            value = read(line.rstrip(b"\r\n"))
        except ValueError as error:
            damaged(number, error)
        else:
            yield number, value


def _bounded_lines(path: Path, damaged: Damaged, largest: int) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line; one that does not end is damaged, and the last."""
    with open_regular(path, largest=largest, folder=path.parent) as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                damaged(number, ValueError(f"the line has {LONGEST_LINE >> 20} MiB or more"))
                return
            yield number, line


def refusing(path: Path, what: str, advice: str) -> Damaged:
    """Return what refuses a file for its first damaged line.

    Args:
        path: The file.
        what: What the line is not, or cannot be.
        advice: What to do.
    """

    def refuse(number: int, error: Exception) -> None:
        raise CheckpointError(f"{path}:{number}: {what} ({error}); {advice}") from None

    return refuse


def open_lines(path: Path) -> FileIO:
    """Open a file of JSON lines to append to it, without a buffer that an error could leave full.

    Raises:
        MachineError: It cannot be written.
    """
    opened = os.O_WRONLY | os.O_CREAT | os.O_APPEND | flag("O_CLOEXEC")

    def open_here(name: str, _: int) -> int:
        # Not through a link, and a pipe without a reader is not waited at.
        return os.open(name, opened | flag("O_NOFOLLOW") | flag("O_NONBLOCK"), 0o666)

    with disk_errors(path):
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            kind = "a link" if path.is_symlink() else kind_of(path.lstat().st_mode)
            raise MachineError(f"{path}: is {kind}, and a file is written there; remove it")
        return FileIO(str(path), "a", opener=open_here)


def append_line(stream: FileIO, line: str) -> None:
    """Write one whole line, or none.

    Raises:
        MachineError: The disk is full or cannot be written; the file ends where it ended before.
    """
    data = memoryview(f"{line}\n".encode())
    with disk_errors(Path(str(stream.name))):
        before = os.fstat(stream.fileno()).st_size
        try:
            while data:
                data = data[stream.write(data) :]
        except OSError:
            stream.truncate(before)
            raise


@dataclass(frozen=True)
class CutBack:
    """What cutting a file back to a step found in it.

    Attributes:
        first: Step of its first line up to there; 0 where there is none.
        last: Step of its last line up to there; 0 where there is none.
        later: Lines past the step, which come again.
        damaged: Lines that were none, the torn last one of a killed run left out.
    """

    first: int = 0
    last: int = 0
    later: int = 0
    damaged: int = 0


def keep_lines_until(path: Path, step: int) -> CutBack:
    """Drop the lines of a run's JSON lines past ``step``, and what is no such line.

    Raises:
        CheckpointError: The file is a link out of its folder, no regular file, or of no sane size.
        MachineError: The disk is full or cannot be written.
    """
    if not os.path.lexists(path):
        return CutBack()
    first = last = later = 0
    damaged: list[int] = []
    with replacing(path) as kept:
        for number, line in _bounded_lines(path, lambda n, _: damaged.append(n), _LARGEST_KEPT):
            row = _object_of(line)
            if row is None or type(row.get("step")) is not int:
                if line.endswith(b"\n"):  # else the torn last line of a killed run
                    damaged.append(number)
            elif row["step"] > step:
                later += 1
            else:
                kept.write(line.decode("utf-8").rstrip("\r\n") + "\n")
                first, last = first or row["step"], max(last, row["step"])
    return CutBack(first, last, later, len(damaged))


def _object_of(line: bytes) -> dict[str, Any] | None:
    """Return the object that a line holds, if it holds one."""
    try:
        row = parse(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
