"""The progress display of a run.

Only rank 0 speaks. In a terminal the progress is two lines that are drawn again: a bar with steps,
epoch and time, and below it the figures of the last step with a curve of the loss so far, as wide
as there is room. Elsewhere it is one plain line per logging step, which survives in a job's log.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.display import can_show, visible
from gptoss_tune.train.metrics.spark import BLOCKS, spark

_NARROWEST_CURVE, _WIDEST_CURVE = 6, 40


class ProgressDisplay(TrainerCallback):
    """Show loss, tokens/s, memory and time left: a bar in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        """Draw on ``console``."""
        self._console = console
        self._progress: _TwoLines | None = None
        self._task: Any = None
        self._began, self._first_step = time.monotonic(), 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar at the resumed step."""
        self._began, self._first_step = time.monotonic(), state.global_step
        if not state.is_world_process_zero or not self._console.is_terminal:
            return
        self._progress = _TwoLines(
            BarColumn(bar_width=18),
            MofNCompleteColumn(),
            TextColumn("{task.fields[times]}"),
            console=self._console,
        )
        self._task = self._progress.add_task(
            "train", total=state.max_steps, completed=state.global_step, times=""
        )
        self._progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the bar."""
        if self._progress is not None:
            times = "  ".join(self._times(state))
            self._progress.update(self._task, completed=state.global_step, times=times)

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
        if "eval_reward" in logs:
            won = "  ".join(_held_out_rewards(logs))
            self._console.print(f"step {state.global_step}: held-out {won}")
        elif "eval_loss" in logs:
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
            if self._progress is not None:
                curve = logs["reward"] if "reward" in logs else logs["loss"]
                self._progress.show(step_figures(logs), curve)
            else:
                left = self._left_s(state)
                eta = "" if left is None else f"  eta {clock(left)}"
                self._console.print(
                    f"step {state.global_step}/{state.max_steps}  {step_figures(logs)}{eta}"
                )

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

    def _times(self, state: TrainerState) -> list[str]:
        """Return epoch, time since this process began to train, and time left, for the bar."""
        parts = []
        if state.epoch is not None and state.num_train_epochs:
            parts.append(f"epoch {state.epoch:.2f}/{state.num_train_epochs}")
        parts.append(f"{clock(time.monotonic() - self._began)} elapsed")
        left = self._left_s(state)
        return parts if left is None else [*parts, f"{clock(left)} left"]

    def _left_s(self, state: TrainerState) -> float | None:
        """Return the seconds to the last step at the pace so far; None before the first step."""
        done = state.global_step - self._first_step
        if done < 1:
            return None
        return (time.monotonic() - self._began) / done * (state.max_steps - state.global_step)


class _TwoLines(Progress):
    """A bar, and below it a line of figures that ends in the curve of the loss, or the reward."""

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        """Draw ``columns`` as the bar."""
        self._figures = ""
        self._curve: list[float] = []
        super().__init__(*columns, console=console)

    def show(self, figures: str, value: float) -> None:
        """Show the figures of a step; its loss or reward goes on the curve."""
        self._figures = figures
        self._curve.append(value)
        self.refresh()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, and the figures once there are some."""
        yield self.make_tasks_table(self.tasks)
        if not self._figures:
            return
        line = Text(self._figures, no_wrap=True, overflow="crop")
        room = min(self.console.width - len(self._figures) - 3, _WIDEST_CURVE)
        if room >= _NARROWEST_CURVE and can_show(BLOCKS, self.console.encoding):
            line.append(f"  {spark(self._curve, room)}", style="cyan")
        yield line


def step_figures(logs: dict[str, Any]) -> str:
    """Return the figures of a step in less than 80 columns.

    Loss, learning rate, gradient norm, throughput and memory; of a preference run margin and
    accuracy in the place of the learning rate; of a run that learns from rewards the reward, the
    length of an episode, what was cut off, and the KL of sampler and trainer, without the loss.
    """
    memory, speed = f"{logs['memory_gib']:.1f} GiB", f"{logs['tokens_per_second']:,.0f} tok/s"
    norm = logs.get("grad_norm")
    grad = [] if norm is None else [f"grad {_short(float(norm))}"]
    if rewarded := _reward_figures(logs):
        parts = [*rewarded, *grad, speed, memory]
    elif won := _preference_figures(logs):
        parts = [f"loss {_short(logs['loss'])}", *won, *grad, speed, memory]
    else:
        mantissa, _, exponent = f"{logs.get('learning_rate', 0.0):.1e}".partition("e")
        parts = [f"loss {logs['loss']:.3f}", f"lr {mantissa}e{int(exponent)}", *grad, speed, memory]
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Return a duration as a clock shows it: ``0:07``, ``12:40``, ``3:05:00``, ``2d 04:00``."""
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 48:
        days, hour = divmod(hours, 24)
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _reward_figures(logs: dict[str, Any]) -> list[str]:
    """Return what a step's episodes earned, and what is to be watched; of any other line, none.

    A step that trains on episodes of an earlier one has no rewards of its own.
    """
    if "mismatch_kl" not in logs and "reward" not in logs:
        return []
    found = [] if "reward" not in logs else [f"reward {_short(logs['reward'])}"]
    if (tokens := logs.get("episode_tokens")) is not None:
        found.append(f"{tokens:.0f} tok")
    if cut := logs.get("cut_off_share"):
        found.append(f"cut {cut:.0%}")
    if (mismatch := logs.get("mismatch_kl")) is not None:
        found.append(f"kl {mismatch:.0e}".replace("e-0", "e-") if mismatch else "kl 0")
    return found


def _held_out_rewards(logs: dict[str, Any]) -> list[str]:
    """Return the held-out reward, its components where there are several, and the length."""
    begin = "eval_reward_"
    parts = {name.removeprefix(begin): v for name, v in logs.items() if name.startswith(begin)}
    found = [f"reward {_short(logs['eval_reward'])}"]
    found += [f"{visible(name)} {_short(value)}" for name, value in parts.items() if len(parts) > 1]
    if (tokens := logs.get("eval_episode_tokens")) is not None:
        found.append(f"{tokens:,.0f} tok")
    if cut := logs.get("eval_cut_off_share"):
        found.append(f"cut {cut:.0%}")
    if failed := logs.get("eval_failed_rewards"):
        found.append(f"{failed:.0f} rewards failed")
    return found


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
