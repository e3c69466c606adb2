"""The observers of a run: one ordered list, asked at the same places by every method.

An observer sees a micro-batch before its forward pass, its loss after it, the step's gradients
before they are clipped, and each line of metrics; what it has seen goes into every checkpoint and
comes back from there. Observers do not know each other: what two of them look at (the load of the
experts) stands in the events that both are handed. Asking for figures changes nothing; counting
starts anew where ``after_log`` says so.

The rejected alternative is ``TrainerCallback`` alone: its hooks come after the gradients were
clipped, see no batch, and keep nothing in a checkpoint. An observer is one as well, for the
begin and the end of training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.distributed import sum_over_ranks
from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.atomic import write_text
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.train.data.collator import IGNORED
from gptoss_tune.train.observers.expert_load import ExpertLoad
from gptoss_tune.train.observers.observer import GradientStep, LogLine, MicroBatch, StepObserver


class StepObservers(TrainerCallback):
    """The observers of a run, asked in their order, and the load of the experts that they share."""

    def __init__(self, observers: Sequence[StepObserver], checkpoint: Path | None = None) -> None:
        """Ask ``observers``.

        Args:
            observers: In the order in which they look; at the end of training, the last first.
            checkpoint: What the run continues from; ``None`` for a fresh start.

        Raises:
            ValueError: Two keep their state in one file, or one is not named as such a file.
        """
        self.observers = tuple(observers)
        files = [observer.file for observer in self.observers if observer.file is not None]
        for file in files:
            if Path(file).name != file or not file.endswith(".json") or files.count(file) > 1:
                raise ValueError(
                    f"StepObserver.file: got {file!r}, expected a name of its own like "
                    "'longest-row.json', which no other observer of the run has"
                )
        self._checkpoint = checkpoint
        self._load: ExpertLoad | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Read what a checkpoint kept, all of it, before any observer begins.

        Raises:
            CheckpointError: The checkpoint holds none that can be read.
        """
        self.resume(first_rank=state.is_world_process_zero)
        self._load = ExpertLoad(model)
        for observer in self.observers:
            observer.on_train_begin(args, state, control, model=model, **kwargs)

    def resume(self, *, first_rank: bool) -> None:
        """Hand every observer what the checkpoint kept of it; nothing on a fresh start.

        Raises:
            CheckpointError: The checkpoint holds none that can be read.
        """
        if self._checkpoint is not None:
            for observer in self.observers:
                _resume(observer, self._checkpoint, first_rank=first_rank)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hand an update on."""
        for observer in self.observers:
            observer.on_optimizer_step(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hand the end of training on, to the last observer first.

        Raises:
            GuardError: The run has to end without an adapter.
        """
        for observer in reversed(self.observers):
            observer.on_train_end(args, state, control, **kwargs)

    def before_forward(self, batch: MicroBatch) -> None:
        """Show a micro-batch; its experts are counted over tokens that are not padding."""
        for observer in self.observers:
            observer.before_forward(batch)
        self._begun().of_tokens((batch.inputs["shift_labels"] != IGNORED).flatten())

    def after_forward(self, loss: Tensor) -> None:
        """Show a micro-batch's loss; what backward runs again is not counted again."""
        for observer in self.observers:
            observer.after_forward(loss)
        self._begun().of_tokens(None)

    def on_gradients(self, model: nn.Module, step: int, *, teaches: bool = True) -> bool:
        """Show the gradients of a step before they are clipped; return whether it makes an update.

        Args:
            model: Whose parameters hold them.
            step: Its number.
            teaches: As in ``GradientStep``.

        Raises:
            GuardError: The run has to end.
        """
        event = GradientStep(model, step, self._begun().counts, teaches=teaches)
        for observer in self.observers:
            observer.on_gradients(event)
        for observer in self.observers:
            observer.after_gradients(event)
        return event.applied

    def log(self, figures: dict[str, float], step: int, *, last: bool) -> None:
        """Add the observers' figures to a line of metrics, and let them begin the next one.

        Args:
            figures: The line so far; a figure that an observer gives replaces one of its name.
            step: Its number.
            last: Whether it is the run's last line.
        """
        load = self._begun()
        line = LogLine(step, last, time.monotonic(), sum_over_ranks(load.counts), figures)
        for observer in self.observers:
            figures.update(observer.figures(line))
        for observer in self.observers:
            observer.after_log(line)
        load.reset()

    def before_saving(self, model: nn.Module, step: int) -> None:
        """Show a model that is about to be written.

        Raises:
            GuardError: It must not be.
        """
        for observer in self.observers:
            observer.before_saving(model, step)

    def save(self, folder: Path, *, writes: bool) -> None:
        """Put what was seen into a checkpoint that is being written; every rank has to ask."""
        for observer in self.observers:
            state = observer.state_dict()
            if writes and observer.file is not None:
                write_text(folder / observer.file, json.dumps(state) + "\n")

    def close(self) -> None:
        """Take all hooks off the model and close all files."""
        for observer in self.observers:
            observer.close()
        if self._load is not None:
            self._load.close()

    def _begun(self) -> ExpertLoad:
        assert self._load is not None  # training has begun
        return self._load


def _resume(observer: StepObserver, checkpoint: Path, *, first_rank: bool) -> None:
    """Hand an observer its state; whatever is wrong with it, the message names the file."""
    if observer.file is None or observer.fresh:
        return
    path = checkpoint / observer.file

    def unreadable(error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{path}: no readable {observer.kept} ({error}); resume from another checkpoint"
        )

    try:
        state = read_object(path)
    except (OSError, CheckpointError) as error:
        raise unreadable(error) from error
    try:
        observer.load_state_dict(state, first_rank=first_rank)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (
        *(ArithmeticError, AttributeError, KeyError, RuntimeError, TypeError, ValueError),
    ) as error:
        raise unreadable(error) from error
