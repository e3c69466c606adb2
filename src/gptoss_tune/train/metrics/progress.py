"""The progress display of a run.

Only rank 0 speaks. In a terminal the progress is a bar with the figures of the last step; elsewhere
it is one plain line per logging step, which survives in a job's log.
"""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ProgressDisplay(TrainerCallback):
    """Show loss, tokens/s and memory: a bar in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        """Draw on ``console``."""
        self._console = console
        self._progress: Progress | None = None
        self._task: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar at the resumed step."""
        if not state.is_world_process_zero or not self._console.is_terminal:
            return
        self._progress = Progress(
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TextColumn("eta"),
            TimeRemainingColumn(compact=True),
            console=self._console,
        )
        self._task = self._progress.add_task(
            "train", total=state.max_steps, completed=state.global_step, figures=""
        )
        self._progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the figures of the last logged step."""
        if not logs or not state.is_world_process_zero:
            return
        if "eval_loss" in logs:
            loss = logs["eval_loss"]
            self._console.print(f"step {state.global_step}: eval loss {loss:.4f}")
            if not math.isfinite(loss):
                self._console.print(
                    f"warning: the held-out loss is {loss}: the model computes no number for a "
                    "held-out row, although it trains; look for what those rows alone hold, and "
                    "for NaN in the base"
                )
        elif "loss" in logs:
            figures = step_figures(logs)
            if self._progress is not None:
                self._progress.update(self._task, figures=figures)
            else:
                self._console.print(f"step {state.global_step}/{state.max_steps}  {figures}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the finished bar on the screen."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, also when training ended in an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def step_figures(logs: dict[str, Any]) -> str:
    """Return loss, learning rate, throughput and memory; with the bar they take 80 columns."""
    mantissa, _, exponent = f"{logs.get('learning_rate', 0.0):.1e}".partition("e")
    return (
        f"loss {logs['loss']:.3f}  lr {mantissa}e{int(exponent)}  "
        f"{logs['tokens_per_second']:,.0f} tok/s  {logs['memory_gib']:.1f} GiB"
    )
