"""The base of all trackers: a file, wandb, trackio, each on rank 0 alone.

The three differ in how they open, take a line and close; when they do is said here once. Plain
``TrainerCallback`` was the alternative: each of the three then repeats which rank it is on, what a
line without figures is, and the signatures of the hooks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Tracker(TrainerCallback, ABC):
    """Takes every logged line of a run; a subclass says how."""

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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open on the rank that writes."""
        if state.is_world_process_zero:
            self.open(state.global_step)
            self._taking = True

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
            self.write(state, logs)

    def close(self) -> None:
        """End; not before the last evaluation, which comes after the last step."""
        if self._taking:
            self._taking = False
            self.shut()
