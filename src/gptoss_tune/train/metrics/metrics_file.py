"""``RUN/metrics.jsonl``: every logged line, one JSON object each, flushed at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerState

from gptoss_tune.files.strict_json import to_text
from gptoss_tune.run.jsonl import append_line, keep_lines_until, open_lines
from gptoss_tune.train.metrics.trackers import Tracker


class MetricsFile(Tracker):
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
        row = {"step": state.global_step, "epoch": state.epoch, **logs}
        append_line(self._stream, to_text(row))

    def shut(self) -> None:
        """Close the file."""
        self._stream.close()
