"""How many tokens each expert gets, and how evenly: the entropy of a layer's load.

Counted by hooks on the routers, on the device, over tokens that are not padding, in the forward
pass alone: what activation checkpointing runs again is not counted again.

K experts per token, E experts, L layers, T tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class ExpertLoad:
    """Counts of tokens by layer and expert since the last ``reset``.

    Attributes:
        counts: ``[L, E]`` fp64 on the model's device.
    """

    def __init__(self, model: nn.Module) -> None:
        """Count in every router of ``model``."""
        routers: list[Any] = [m for m in model.modules() if type(m).__name__ == "GptOssTopKRouter"]
        self._real: Tensor | None = None
        self._handles: list[RemovableHandle] = []
        device = routers[0].weight.device
        shape = (len(routers), routers[0].num_experts)
        self.counts = torch.zeros(shape, dtype=torch.float64, device=device)
        for layer, router in enumerate(routers):
            self._handles.append(router.register_forward_hook(self._counter(layer)))

    def of_tokens(self, real: Tensor | None) -> None:
        """Count tokens of the coming forward pass where ``real [T]`` is not 0; ``None``: none."""
        self._real = real

    def reset(self) -> None:
        """Start again at zero."""
        self.counts.zero_()

    def close(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _counter(self, layer: int) -> Any:
        def count(router: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            if self._real is None:
                return
            indices = output[2]
            pairs = self._real.to(self.counts.dtype)[:, None].expand(indices.shape)
            self.counts[layer].index_add_(0, indices.flatten(), pairs.flatten())

        return count


def entropies(counts: Tensor) -> list[float]:
    """Return each layer's ``-sum p log p / log E``: 1 where all experts get the same.

    Args:
        counts: ``[L, E]``, summed over all ranks.
    """
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).cpu()
    entropy = -torch.special.xlogy(shares, shares).sum(dim=1)
    return (entropy / math.log(max(counts.shape[1], 2))).tolist()
