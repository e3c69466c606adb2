"""torch's compiled flex attention as an engine of attention with sinks, portable and fp32 in LSE.

``O' = O * sigmoid(LSE - sink)`` in fp32, differentiated by autograd through O and LSE, both of
which flex's backward takes gradients for. transformers does the same after rounding LSE to bf16,
which moves the output by 1.2 % on average and 7.9 % at worst. The block mask is made once per
forward pass and window, not once per layer.

B rows, S tokens of a row, Hq query heads, Hkv key-value heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    create_block_mask,
    flex_attention,
)

from gptoss_kernels.attention.interface import AttentionRule


class FlexEngine:
    """Flex attention under ``torch.compile``; ``compiled=False`` runs its plain definition."""

    def __init__(self, *, compiled: bool = True) -> None:
        """Compile once for all layers and lengths."""
        self.compiled = compiled
        self._flex: Any = flex_attention
        if compiled:  # dynamic: one compilation for all lengths; padded batches change theirs
            self._flex = torch.compile(flex_attention, dynamic=True)

    def differentiable(
        self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, rule: AttentionRule
    ) -> Tensor:
        """See ``DifferentiableEngine``."""
        out, aux = self._flex(
            query,
            key,
            value,
            block_mask=self._block_mask(query, rule),
            scale=rule.scaling,
            enable_gqa=True,
            return_aux=AuxRequest(lse=True),
        )
        share = torch.sigmoid(aux.lse.float() - sinks.float()[:, None]).unsqueeze(-1)
        return (out.float() * share).to(query.dtype).transpose(1, 2).contiguous()

    def _block_mask(self, query: Tensor, rule: AttentionRule) -> BlockMask:
        made = rule.documents.made
        name = ("flex", rule.window, self.compiled)
        if name not in made:
            first_key, window = rule.documents.first_key, rule.window

            def visible(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
                seen = (column <= row) & (column >= first_key[batch, row])
                return seen if window is None else seen & (column > row - window)

            batch, _, length, _ = query.shape
            made[name] = create_block_mask(
                visible, batch, None, length, length, query.device, _compile=self.compiled
            )
        return made[name]
