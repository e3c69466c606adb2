"""``RUN/metrics.jsonl``: every logged line, one JSON object each, flushed at once.

A checkpoint is written after the line of its step, and both files of lines are synced with it. So a
continuation expects them to reach its step, and says so where they do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerState

from gptoss_tune.files.strict_json import to_text
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.jsonl import append_line, keep_lines_until, open_lines
from gptoss_tune.train.metrics.trackers import Tracker


def cut_back(run: RunFolder, step: int) -> list[str]:
    """Cut metrics and layers back to the step a run goes on from; return what was found amiss.

    Args:
        run: The run's folder.
        step: Of its checkpoint; 0 when it starts again.
    """
    notes, began = [], 0
    for path in (run.metrics, run.layers):
        cut = keep_lines_until(path, step)
        began = began or cut.first
        if cut.later:
            notes.append(
                f"{path.name}: {cut.later} line{'s' if cut.later > 1 else ''} past step {step} "
                "are dropped, those steps are trained again"
            )
        # Not every step has a line of layers, but the first one does, of a run that began there.
        reaches = cut.last >= (step if path == run.metrics else min(step, began <= 1))
        if cut.damaged or not reaches:
            damaged = f"{cut.damaged} damaged lines were dropped, it" if cut.damaged else "it"
            notes.append(
                f"{path.name}: {damaged} ends at step {cut.last}, and the run goes on from step "
                f"{step}: what is missing is lost (a power loss, or someone changed the file); "
                "the training is not affected"
            )
    return notes


class MetricsFile(Tracker):
    """Append every logged line to ``RUN/metrics.jsonl``, flushed at once."""

    essential = True

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
