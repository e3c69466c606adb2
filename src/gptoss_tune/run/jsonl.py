"""JSON lines of a run, its metrics first: written whole, cut back on a resume, read by one reader.

A line is one object and is flushed at once, so a killed run leaves at most one torn line, the last.
Several read these files, and a damaged line means something else to each: ``reproduce`` compares
nothing without it, a page shows the others. So the reader hands each line that is none to its
caller, who raises (``refusing``) or counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.atomic import disk_errors, write_text
from gptoss_tune.files.strict_json import parse, parse_unchecked

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
    """
    read = parse if strict else parse_unchecked
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if pass_over_blank and not line.strip():
                continue
            try:
                value = read(line.rstrip(b"\r\n"))
            except ValueError as error:
                damaged(number, error)
            else:
                yield number, value


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
    with disk_errors(path):
        return FileIO(path, "a")


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
        last: Step of its last line up to there; 0 where there is none.
        later: Lines past the step, which come again.
        damaged: Lines that were none, the torn last one of a killed run left out.
    """

    last: int = 0
    later: int = 0
    damaged: int = 0


def keep_lines_until(path: Path, step: int) -> CutBack:
    """Drop the lines of a run's JSON lines past ``step``, and what is no such line."""
    if not path.exists():
        return CutBack()
    kept, last, later, damaged = [], 0, 0, 0
    raw = path.read_bytes()
    lines = raw.splitlines()
    for line in lines:
        try:
            row = parse(line)
        except ValueError:
            row = None  # the torn last line of a killed run, or a damaged one
        if not isinstance(row, dict) or type(row.get("step")) is not int:
            damaged += 1
        elif row["step"] > step:
            later += 1
        else:
            kept.append(line.decode("utf-8"))
            last = max(last, row["step"])
    if damaged and not raw.endswith(b"\n"):
        damaged -= 1
    write_text(path, "".join(f"{line}\n" for line in kept))
    return CutBack(last, later, damaged)
