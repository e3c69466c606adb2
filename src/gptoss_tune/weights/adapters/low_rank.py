"""The change of one weight that an adapter's factors make."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The change ``scaling * B @ A`` of one weight, factors in fp32.

    With a ``magnitude`` (DoRA) the changed weight has each row brought to that length:
    ``magnitude * (W + scaling B A) / |W + scaling B A|``.

    Attributes:
        A: ``[E, r, in]``; E is 1 for a linear layer.
        B: ``[E, out, r]``.
        scaling: alpha / rank, times the adapter's weight.
        chosen: Experts that are changed at all, ascending; ``None``: every one.
        magnitude: ``[out]`` fp32, of a linear layer alone.
    """

    A: Tensor
    B: Tensor
    scaling: float
    chosen: tuple[int, ...] | None = None
    magnitude: Tensor | None = None

    def to(self, device: torch.device) -> LowRank:
        """Return the same change with its factors on ``device``."""
        magnitude = None if self.magnitude is None else self.magnitude.to(device)
        return LowRank(self.A.to(device), self.B.to(device), self.scaling, self.chosen, magnitude)

    def add_rows(self, weight: Tensor, start: int = 0) -> Tensor:
        """Return a linear layer's rows from ``start`` on, ``[rows, in]`` fp32, with the change.

        ``weight`` is changed in place.
        """
        rows = slice(start, start + weight.shape[0])
        weight += (self.B[0, rows] @ self.A[0]).mul_(self.scaling)
        if self.magnitude is not None:
            weight.mul_((self.magnitude[rows] / weight.norm(dim=1)).unsqueeze(1))
        return weight

    def apply(self, inputs: Tensor, expert: int = 0) -> Tensor:
        """Return ``scaling * (x A^T) B^T`` for ``inputs [..., in]``, without forming the change.

        What ``magnitude`` does to the rows is not in it.
        """
        return (inputs @ self.A[expert].T) @ self.B[expert].T * self.scaling
