"""Which evaluation is the best so far, and how many since were no better: plain numbers, no model.

A value that is no number never is the best one and never an improvement; of two equal values the
earlier one stays. An evaluation counts once: what a continuation measures again at a step that was
counted is left out, so a run that was killed comes to the same end as one that was not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_tune.recipe.schema import Goal


@dataclass
class _Counted:
    """A figure, and the last step at which it was counted.

    Attributes:
        metric: Its name in the metrics.
        goal: Which value is better.
        seen: The step; 0 before the first.
        value: The one to beat; ``None`` before the first number.
        step: Of that value.
    """

    metric: str
    goal: Goal
    seen: int = field(default=0, kw_only=True)
    value: float | None = field(default=None, kw_only=True)
    step: int = field(default=0, kw_only=True)

    def _new(self, step: int) -> bool:
        """Count a step; say whether it had not been counted."""
        new = step > self.seen
        self.seen = max(self.seen, step)
        return new

    def _gain(self, value: float) -> float:
        """Return by how much ``value`` is better than the one to beat; NaN is by nothing."""
        if not math.isfinite(value):
            return -math.inf
        if self.value is None:
            return math.inf
        return self.value - value if self.goal == "min" else value - self.value

    def state_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``.

        Raises:
            KeyError, ValueError: It is none, or one of another figure.
        """
        if (state["metric"], state["goal"]) != (self.metric, self.goal):
            raise ValueError(f"it is of {state['metric']!s:.60}, not of {self.metric}")
        for name, value in vars(self).items():
            found = state[name]
            if name == "value":
                sound = found is None or (type(found) in (int, float) and math.isfinite(found))
            else:
                sound = type(found) is type(value) and (isinstance(found, str) or found >= 0)
            if not sound:
                raise ValueError(f"{name} is {found!r:.60}")
        vars(self).update({name: state[name] for name in vars(self)})


@dataclass
class Best(_Counted):
    """The best evaluation so far."""

    def take(self, step: int, value: float) -> bool:
        """Count an evaluation; return whether it is the best so far."""
        if not self._new(step) or self._gain(value) <= 0:
            return False
        self.value, self.step = float(value), step
        return True


@dataclass
class Patience(_Counted):
    """How many evaluations in a row were no improvement.

    Attributes:
        patience: After how many the run ends.
        min_delta: By how much a value has to be better than the last improvement.
        waited: Evaluations since that one.
    """

    patience: int
    min_delta: float
    waited: int = field(default=0, kw_only=True)

    @property
    def over(self) -> bool:
        """Whether the run is to end."""
        return self.waited >= self.patience

    def take(self, step: int, value: float) -> None:
        """Count an evaluation."""
        if self.over or not self._new(step):
            return
        if self._gain(value) > self.min_delta:
            self.value, self.step, self.waited = float(value), step, 0
        else:
            self.waited += 1

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``; how long to wait is the recipe's, not the checkpoint's."""
        own = {"patience": self.patience, "min_delta": self.min_delta}
        super().load_state_dict({**state, **own})
