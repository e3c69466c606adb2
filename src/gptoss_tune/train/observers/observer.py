"""What an observer of a run sees: a micro-batch, the gradients of a step, a line of metrics.

Asking for figures changes nothing; counting starts anew where ``after_log`` says so.

B rows, S tokens of a row, D datasets, L layers, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback


@dataclass(frozen=True)
class MicroBatch:
    """What the model is about to see, and what the trainer knows of it.

    Attributes:
        inputs: Of the forward pass: ``input_ids``, ``shift_labels`` ``[B, S]``, and so on.
        rows: Row numbers in the training data.
        counts: ``[D, 5]`` tokens by dataset: trained ones by channel, and all.
    """

    inputs: dict[str, Any]
    rows: list[int]
    counts: Any


@dataclass
class GradientStep:
    """The gradients of a whole step, before anything changed them.

    Attributes:
        model: Whose parameters hold them.
        number: Of the step, from 1.
        expert_load: ``[L, E]`` tokens of this rank by layer and expert, not yet summed over ranks.
        applied: Whether the step makes an update; an observer that drops the gradients says no.
        teaches: Whether there was anything to learn: the rewards of some group differ, where a
            method has rewards. Without, every gradient is rightly 0.
    """

    model: nn.Module
    number: int
    expert_load: Tensor
    applied: bool = True
    teaches: bool = True


@dataclass(frozen=True)
class LogLine:
    """A line of training metrics that is about to be written.

    Attributes:
        step: Its number.
        last: Whether it is the run's last.
        at: Monotonic seconds.
        expert_load: ``[L, E]`` tokens by layer and expert since the last line, of all ranks.
        figures: What the line says so far; observers see what those before them found.
    """

    step: int
    last: bool
    at: float
    expert_load: Tensor
    figures: dict[str, float] = field(default_factory=dict)


class StepObserver(TrainerCallback):
    """Looks at each step of a run; every rank has one, and all are asked the same.

    A subclass overrides what it looks at. ``after_gradients`` is not called ``on_step_end`` because
    a ``TrainerCallback`` has one, of other arguments, after the update.
    """

    file: str | None = None
    """Name of its state in a checkpoint; ``None``: it keeps none."""
    kept: str = "state"
    """What that is, for the message of a checkpoint that has none."""

    @property
    def fresh(self) -> bool:
        """Whether what a run continues from keeps no state of it: it was added since."""
        return False

    def before_forward(self, batch: MicroBatch) -> None:
        """See a micro-batch that is about to be trained on."""

    def after_forward(self, loss: Tensor) -> None:
        """See its share of the step's loss, a scalar with a gradient."""

    def on_gradients(self, step: GradientStep) -> None:
        """Look at the gradients of the whole step; they may be dropped, which the step then says.

        Raises:
            GuardError: The run has to end.
        """

    def after_gradients(self, step: GradientStep) -> None:
        """Learn whether the step is applied; every observer has seen its gradients."""

    def figures(self, line: LogLine) -> dict[str, float]:
        """Return what a line of metrics says, and change nothing; every rank has to ask."""
        return {}

    def after_log(self, line: LogLine) -> None:
        """Start counting anew: the line, whose figures are complete, is about to be written."""

    def before_saving(self, model: nn.Module, step: int) -> None:
        """Look at a model that is about to be written; every rank has to ask.

        Raises:
            GuardError: It must not be.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far as JSON values; every rank has to ask."""
        return {}

    def load_state_dict(self, state: dict[str, Any], *, first_rank: bool) -> None:
        """Go on from a ``state_dict``, which may come from a damaged file.

        Args:
            state: The values.
            first_rank: This process is rank 0, which holds what was summed over ranks.

        Raises:
            ArithmeticError, KeyError, RuntimeError, TypeError, ValueError: It is none.
            CheckpointError: It is one of another run.
        """

    def close(self) -> None:
        """Take hooks off the model and close files."""
