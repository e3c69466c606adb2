"""``RUN/metrics.jsonl``: every logged line, one JSON object each, flushed at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TextIO

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class MetricsFile(TrainerCallback):
    """Append every logged line to ``RUN/metrics.jsonl``, flushed at once."""

    def __init__(self, path: Path) -> None:
        """Write to ``path``; a resumed run continues the file."""
        self._path = path
        self._stream: TextIO | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop lines past the resumed step, which are about to be written again."""
        if state.is_world_process_zero:
            keep_lines_until(self._path, state.global_step)
            self._stream = self._path.open("a", encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line: the step, and every figure of it."""
        if self._stream is not None and logs:
            # JSON has no NaN.
            figures = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in logs.items()
            }
            row = {"step": state.global_step, "epoch": state.epoch, **figures}
            self._stream.write(json.dumps(row) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Close the file; not before the last evaluation, which comes after the last step."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def keep_lines_until(path: Path, step: int) -> None:
    """Drop the lines of a run's JSON lines past ``step``, and a torn last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # the torn last line of a killed run
    replacement = path.with_name(path.name + ".partial")
    replacement.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    replacement.replace(path)
