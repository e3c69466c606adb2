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
            won = "".join(f"  {part}" for part in _preference_figures(logs, "eval_"))
            self._console.print(f"step {state.global_step}: eval loss {loss:.4f}{won}")
            if not math.isfinite(loss):
                self._console.print(
                    f"warning: the held-out loss is {loss}: the model computes no number for a "
                    "held-out row, although it trains; look for what those rows alone hold, and "
                    "for NaN in the base"
                )
        elif "loss" in logs:
            figures = step_figures(logs, beside_bar=self._progress is not None)
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


def step_figures(logs: dict[str, Any], *, beside_bar: bool = False) -> str:
    """Return the figures of a step for a line of 80 columns, of which a bar takes 33.

    Loss, learning rate, throughput and memory; of a preference run loss, margin, accuracy and
    memory, and throughput where there is no bar, whose time to the end says as much.
    """
    memory, speed = f"{logs['memory_gib']:.1f} GiB", f"{logs['tokens_per_second']:,.0f} tok/s"
    if won := _preference_figures(logs):
        parts = [f"loss {_short(logs['loss'])}", *won, *([] if beside_bar else [speed]), memory]
    else:
        mantissa, _, exponent = f"{logs.get('learning_rate', 0.0):.1e}".partition("e")
        parts = [f"loss {logs['loss']:.3f}", f"lr {mantissa}e{int(exponent)}", speed, memory]
    return "  ".join(parts)


def _preference_figures(logs: dict[str, Any], prefix: str = "") -> list[str]:
    """Return margin and accuracy of a preference run's line; of any other, none."""
    margin, accuracy = (logs.get(f"{prefix}reward_{name}") for name in ("margin", "accuracy"))
    found = [] if margin is None else [f"margin {_short(margin)}"]
    return found + ([] if accuracy is None else [f"acc {accuracy:.0%}"])


def _short(value: float) -> str:
    """Return a number in 7 columns: in three digits where it is small, then rounded."""
    size = abs(value)
    if size < 10_000:
        return f"{value:.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
