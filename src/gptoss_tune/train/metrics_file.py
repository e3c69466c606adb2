"""``RUN/metrics.jsonl``: every logged line, one JSON object each, flushed at once."""

from __future__ import annotations

import json
import math
import os
from io import FileIO
from pathlib import Path
from typing import Any

from transformers import TrainerState

from gptoss_tune.files.atomic import disk_errors, write_text
from gptoss_tune.files.strict_json import parse
from gptoss_tune.train.metric_lines import MetricLines


class MetricsFile(MetricLines):
    """Append every logged line to ``RUN/metrics.jsonl``, flushed at once."""

    def __init__(self, path: Path) -> None:
        """Write to ``path``; a resumed run continues the file."""
        self._path = path

    def open(self, step: int) -> None:
        """Drop lines past the resumed step, which are about to be written again."""
        keep_lines_until(self._path, step)
        self._stream = open_lines(self._path)

    def write(self, state: TrainerState, logs: dict[str, Any]) -> None:
        """Write one line: the step, and every figure of it."""
        # JSON has no NaN.
        figures = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in logs.items()
        }
        row = {"step": state.global_step, "epoch": state.epoch, **figures}
        append_line(self._stream, json.dumps(row))

    def shut(self) -> None:
        """Close the file."""
        self._stream.close()


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
