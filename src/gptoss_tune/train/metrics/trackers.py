"""The base of all trackers: a file, wandb, trackio, each on rank 0 alone.

The three differ in how they open, take a line and close; when they do is said here once. Plain
``TrainerCallback`` was the alternative: each of the three then repeats which rank it is on, what a
line without figures is, and the signatures of the hooks.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.display import shown_safely
from gptoss_tune.run.folder import METRICS
from gptoss_tune.train.metrics.console import say


class Tracker(TrainerCallback, ABC):
    """Takes every logged line of a run; a subclass says how."""

    essential = False
    """Whether a run without it is none; what a tracker loses costs a word, and not the run."""
    _taking = False

    @abstractmethod
    def open(self, step: int) -> None:
        """Begin, on rank 0; lines past ``step`` are about to be written again."""

    @abstractmethod
    def write(self, state: TrainerState, logs: dict[str, Any]) -> None:
        """Take one line, whose figures are never none at all."""

    @abstractmethod
    def shut(self) -> None:
        """End what ``open`` began."""

    def abandon(self) -> None:
        """Let go of what failed, so that it says no more at the end of the process."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open on the rank that writes."""
        if state.is_world_process_zero:
            self._taking = True
            with self._losing("cannot be opened"):
                self.open(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Hand one line on."""
        if self._taking and logs:
            with self._losing(f"takes no more metrics after step {state.global_step}"):
                self.write(state, logs)

    def close(self) -> None:
        """End; not before the last evaluation, which comes after the last step."""
        if self._taking:
            with self._losing("could not be ended"):
                self.shut()
            self._taking = False

    @contextlib.contextmanager
    def _losing(self, what: str) -> Iterator[None]:
        """Give up on what fails in here, and say so once; an essential tracker ends the run."""
        try:
            yield
        except Exception as error:
            # A service of others can fail in any way, and its process can be killed.
            self._taking = False
            if self.essential:
                raise
            words = shown_safely(f"{type(error).__name__}: {error}").splitlines()[0]
            say(
                f"{type(self).__name__} {what} ({words}); the run goes on, every line is in its "
                f"{METRICS}"
            )
            self.abandon()
