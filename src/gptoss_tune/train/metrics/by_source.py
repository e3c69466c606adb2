"""Held-out figures of each source beside those of all: which data got better, and which worse.

Summed as the figures of all are, weights and all, so the loss over all is the mean of the sources'
losses by their weights. Sums are made source by source and not by index: on a GPU an addition by
index comes in another order each time, and a best checkpoint must not hang on that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_LOSS, _WEIGHT, _WON, _PAIRS = range(4)


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation on held-out rows tells beside their loss.

    Attributes:
        sources: Names of the sources whose figures are told one by one; none: they are not.
        collator: Makes batches that say which source a target is from; ``None``: the trainer's.
    """

    sources: tuple[str, ...] = ()
    collator: Callable[[Any], dict[str, Any]] | None = None


class SourceFigures:
    """Running sums of an evaluation by source, read when it is over.

    Attributes:
        sums: ``[4, N]`` fp64: weighted losses, weights, pairs won, pairs.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        """Start at zero.

        Args:
            names: Of the N sources, as ``recipe.figures.sources`` has them.
            device: Of the sums.
        """
        self.names = tuple(names)
        self.sums = torch.zeros(4, len(self.names), dtype=torch.float64, device=device)

    def add(self, losses: Tensor, weights: Tensor, sources: Tensor) -> None:
        """Count the losses of tokens, or of pairs.

        Args:
            losses: Any shape; without gradient.
            weights: Likewise; what has none is not counted.
            sources: Likewise, int64: the number of the source.
        """
        losses, weights = losses.detach().double(), weights.double()
        for number in range(len(self.names)):
            own = weights.masked_fill(sources != number, 0.0)
            # 0 * NaN is NaN: what is of no weight here must not be multiplied.
            counted = losses.masked_fill(own == 0, 0.0)
            self.sums[_LOSS, number] += (counted * own).sum()
            self.sums[_WEIGHT, number] += own.sum()

    def add_won(self, won: Tensor, sources: Tensor) -> None:
        """Count pairs, ``[U]`` bool: whether the chosen answer has the higher reward."""
        for number in range(len(self.names)):
            own = sources == number
            self.sums[_WON, number] += (won & own).sum()
            self.sums[_PAIRS, number] += own.sum()

    def read(self, reduced: Tensor) -> dict[str, float]:
        """Return ``loss_NAME``, ``weight_NAME``, and of pairs ``reward_accuracy_NAME``.

        Args:
            reduced: ``sums`` of all ranks.
        """
        found: dict[str, float] = {}
        for name, column in zip(self.names, reduced.T.tolist(), strict=True):
            if column[_WEIGHT]:
                found[f"loss_{name}"] = column[_LOSS] / column[_WEIGHT]
                found[f"weight_{name}"] = column[_WEIGHT]
            if column[_PAIRS]:
                found[f"reward_accuracy_{name}"] = column[_WON] / column[_PAIRS]
        return found

    def reset(self) -> None:
        """Start again at zero."""
        self.sums.zero_()
