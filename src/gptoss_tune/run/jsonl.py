"""JSON lines that a run appends to: one object each, flushed at once, cut back on a resume."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from gptoss_tune.files.atomic import disk_errors, write_text
from gptoss_tune.files.strict_json import parse


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


def keep_lines_until(path: Path, step: int) -> None:
    """Drop the lines of a run's JSON lines past ``step``, and what is no such line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        try:
            row = parse(line)
        except ValueError:
            continue  # the torn last line of a killed run, or a damaged one
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step:
            kept.append(line.decode("utf-8"))
    write_text(path, "".join(f"{line}\n" for line in kept))
