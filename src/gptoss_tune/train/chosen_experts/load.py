"""Loss-weighted tokens of each expert: whole numbers, so that no order of batches can change them.

A token counts for the experts that its router chose, by the weight of the loss at its position: the
prediction of the next token is what is trained, and those experts compute it. Prompts, padding and
whatever else has no weight count for none. Weights are rounded to a millionth of the largest one,
and the sums are exact: batches and ranks may come in any order.

K experts per token, E experts, L layers, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_BITS = 20


class WeightedLoad:
    """Counts by layer and expert, taken in the routers' forward passes.

    Attributes:
        unit: The weight of one count, a power of two.
        counts: ``[L, E]`` int64 on the model's device.
    """

    def __init__(self, model: nn.Module, largest: float) -> None:
        """Count in every router of ``model``.

        Args:
            model: gpt-oss.
            largest: The largest weight that comes, above 0.
        """
        self.unit = 2.0 ** (math.frexp(largest)[1] - _BITS)
        routers: list[Any] = [m for m in model.modules() if type(m).__name__ == "GptOssTopKRouter"]
        shape, device = (len(routers), routers[0].num_experts), routers[0].weight.device
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)
        self._weights: Tensor | None = None
        self._handles: list[RemovableHandle] = [
            router.register_forward_hook(self._counter(layer))
            for layer, router in enumerate(routers)
        ]

    def of_tokens(self, weights: Tensor) -> None:
        """Count the tokens of the coming forward pass by ``weights [T]``, 0 or more."""
        self._weights = (weights.to(self.counts.device).double() / self.unit).round().long()

    def close(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _counter(self, layer: int) -> Any:
        def count(router: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            indices = output[2]
            assert self._weights is not None  # said before each pass
            pairs = self._weights[:, None].expand(indices.shape)
            self.counts[layer].index_add_(0, indices.flatten(), pairs.flatten())

        return count


def most_loaded(counts: Sequence[int], number: int) -> tuple[int, ...]:
    """Return the ``number`` experts with the highest counts, ascending; of equals the lower one."""
    by_load = sorted(range(len(counts)), key=lambda expert: (-counts[expert], expert))
    return tuple(sorted(by_load[:number]))
