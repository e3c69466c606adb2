"""What a run shows and sends while it runs: a progress bar, wandb.

Only rank 0 speaks. In a terminal the progress is a bar with the figures of the last step; elsewhere
it is one plain line per logging step, which survives in a job's log.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.recipe.schema import TrackingSection


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
            self._console.print(f"step {state.global_step}: eval loss {logs['eval_loss']:.4f}")
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


_WANDB_START_S, _WANDB_END_S = 20.0, 60.0
"""How long a service that does not answer may hold up a run, at its start and at its end."""


@contextlib.contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Take standard input away: without a key wandb asks for one, and a run would wait forever."""
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


class WandbMetrics(TrainerCallback):
    """Send the metrics to Weights & Biases, online or into the run's folder.

    Only figures and the resolved recipe are sent: not the command line, where people put tokens,
    and not the source code.
    """

    def __init__(self, tracking: TrackingSection, run: Path, config: dict[str, Any]) -> None:
        """Track the run in ``run`` under the names of the recipe."""
        self._tracking = tracking
        self._run_folder = run
        self._config = config
        self._run: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the tracked run; if the service cannot be reached, say so and train on offline."""
        if not state.is_world_process_zero:
            return
        import wandb
        from wandb.errors import CommError, UsageError

        wanted: dict[str, Any] = {
            "disable_code": True,
            "disable_git": True,
            "save_code": False,
            "x_disable_meta": True,
            "silent": True,
            "init_timeout": _WANDB_START_S,
            "finish_timeout": _WANDB_END_S,
        }
        known = wandb.Settings.model_fields  # older versions have no limit for the end
        settings = wandb.Settings(**{name: v for name, v in wanted.items() if name in known})
        options: dict[str, Any] = {
            "project": self._tracking.project or "gptoss-tune",
            "name": self._tracking.run_name or self._run_folder.name,
            "dir": str(self._run_folder),
            "config": self._config,
            "settings": settings,
        }
        try:
            with _nobody_to_ask():
                self._run = wandb.init(mode=self._tracking.wandb, **options)  # pyright: ignore[reportArgumentType]
        except (CommError, UsageError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            sys.stderr.write(
                f"wandb takes no metrics ({reason}); the run goes on, they are kept offline in "
                f"{self._run_folder / 'wandb'}: `wandb login`, then `wandb sync` of the folder in "
                "it, sends them later\n"
            )
            self._run = wandb.init(mode="offline", **options)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Send one line of metrics."""
        if self._run is not None and logs:
            self._run.log(logs, step=state.global_step)

    def close(self) -> None:
        """Finish the tracked run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
