"""Warnings of a run that goes on: a loss spike, a router that collapses onto few experts.

Both hold a figure against earlier ones of the same run, its recent losses and the first load of its
routers; the same losses show one that never changes, which ends the run. So what was seen has to
outlive a process: ``state`` goes into each checkpoint. Starting to look anew on a resume was the
alternative: the collapse of a router then counts from where it already was.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from rich.console import Console

from gptoss_tune.errors import GuardError
from gptoss_tune.recipe.schema import GuardSection

CONSTANT_LOSSES = 10
"""Updates after which a loss that never changed by a bit stops the run."""
_RECENT, _ENOUGH = 50, 10
_LEAST_RISE = 0.05
"""Nats below which a rise is none: a preference that is learnt has a loss near 0."""


class LossWarnings:
    """Look at losses and expert load, and warn.

    Attributes:
        warnings: What was warned of, in order.
        entropies: Entropy of each layer's expert load: at the first logged step, and at the newest.
    """

    def __init__(self, section: GuardSection, console: Console) -> None:
        """Warn on ``console`` as strictly as ``section`` says."""
        self.warnings: list[str] = []
        self.entropies: list[list[float]] = []
        self._section, self._console = section, console
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._first: list[float] = []
        self._collapsed: set[int] = set()

    def note_loss(self, loss: float, step: int, *, updates: bool) -> None:
        """Look at the loss of a step.

        Args:
            loss: Of all ranks, finite.
            step: Its number, from 1.
            updates: Whether an update follows that could change the next one.

        Raises:
            GuardError: The loss was the same in each of the first updates.
        """
        factor = self._section.loss_spike
        if factor is not None and len(self._recent) >= _ENOUGH:
            mean = sum(self._recent) / len(self._recent)
            # A loss of one's own may be negative, and has no multiple then.
            if mean > 0 and loss > factor * mean and loss - mean > _LEAST_RISE:
                self.warn(
                    f"step {step}: loss {loss:.4f} is {loss / mean:.1f} times the mean of the last "
                    f"{len(self._recent)} steps; lower train.learning_rate if this goes on"
                )
        self._recent.append(loss)
        if updates and self._section.check_steps and len(self._first) < CONSTANT_LOSSES:
            self._first.append(loss)
            if len(self._first) == CONSTANT_LOSSES and len(set(self._first)) == 1:
                raise GuardError(
                    f"step {step}: the loss was exactly {loss} in each of {CONSTANT_LOSSES} "
                    "updates, so the updates do not reach it; check which weights are adapted "
                    "and that train.learning_rate is not vanishing"
                )

    def note_entropies(self, entropies: list[float]) -> None:
        """Look at the entropy of each layer's expert load, from 0 to 1."""
        # The first and the newest: what a report needs, at any length of the run.
        self.entropies = [*self.entropies[:1], entropies]
        share = self._section.router_collapse
        for layer, (first, now) in enumerate(zip(self.entropies[0], entropies, strict=True)):
            if share is not None and now < share * first and layer not in self._collapsed:
                self._collapsed.add(layer)
                self.warn(
                    f"layer {layer}: its router uses few experts, the entropy of their load fell "
                    f"from {first:.2f} to {now:.2f} of 1; a lower learning rate or more varied "
                    "data keeps it"
                )

    def warn(self, text: str) -> None:
        """Say ``text`` and keep it for the run's record."""
        self.warnings.append(text)
        self._console.print(f"warning: {text}", soft_wrap=True, highlight=False, markup=False)

    def state(self) -> dict[str, Any]:
        """Return what was seen so far as JSON values."""
        return {
            "warnings": self.warnings,
            "router_entropy_by_layer": self.entropies,
            "recent_losses": list(self._recent),
            "first_losses": self._first,
            "collapsed_layers": sorted(self._collapsed),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a ``state``.

        Raises:
            KeyError, TypeError, ValueError: It is none.
        """
        self.warnings = [str(text) for text in state["warnings"]]
        self.entropies = [[float(v) for v in row] for row in state["router_entropy_by_layer"]]
        self._recent.extend(float(loss) for loss in state["recent_losses"])
        self._first = [float(loss) for loss in state["first_losses"]]
        self._collapsed = {int(layer) for layer in state["collapsed_layers"]}
