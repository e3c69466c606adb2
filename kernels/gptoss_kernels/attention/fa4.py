"""FlashAttention 4 (``flash_attn.cute``) as an engine of attention with sinks, where installed.

Its raw forward and backward are called without its own sinks: LSE' does the same on any version of
the library, and several of them have a ``learnable_sink`` whose gradient is silently ``None``.

B rows, S tokens of a row, Hq query heads, D head size, T = B * S.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from torch import Tensor

from gptoss_kernels.attention.interface import AttentionRule
from gptoss_kernels.attention.sinks import add_sinks, row_sums
from gptoss_kernels.attention.torch_flash import to_rows
from gptoss_kernels.backend import Backend

CAPABILITIES = (9, 10, 11)
"""Major compute capabilities with a backward at head size 64."""


def installed() -> bool:
    """Return whether ``flash_attn.cute`` can be imported."""
    if importlib.util.find_spec("flash_attn") is None:
        return False
    return importlib.util.find_spec("flash_attn.cute") is not None


class FlashAttention4Engine:
    """``flash_attn.cute.interface`` with LSE'."""

    def __init__(self, backend: Backend, *, deterministic: bool = False) -> None:
        """Import the library, and let ``backend`` add the sinks.

        Args:
            backend: Who adds the sinks.
            deterministic: Ask for gradients with the same bits in every run.

        Raises:
            ImportError: It is not installed.
        """
        self.backend: Backend = backend
        # Older versions do not know the argument: it is given only where it is meant.
        self._options = {"deterministic": True} if deterministic else {}
        interface: Any = importlib.import_module("flash_attn.cute.interface")
        self._forward, self._backward = interface._flash_attn_fwd, interface._flash_attn_bwd

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        """See ``AttentionEngine``."""
        batch, heads, length, _ = query.shape
        result = self._forward(
            to_rows(query),
            to_rows(key),
            to_rows(value),
            softmax_scale=rule.scaling,
            return_lse=True,
            **_rule_arguments(rule),
        )
        lse = result[1].view(heads, batch, length).transpose(0, 1)
        out = result[0].view(batch, length, heads, -1)
        return add_sinks(out, lse, sinks, backend=self.backend)

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        rule: AttentionRule,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``AttentionEngine``."""
        batch, heads, length, _ = query.shape
        grads = self._backward(
            to_rows(query),
            to_rows(key),
            to_rows(value),
            out.view(batch * length, heads, -1),
            grad_out.reshape(batch * length, heads, -1),
            lse.transpose(0, 1).reshape(heads, batch * length),
            softmax_scale=rule.scaling,
            **_rule_arguments(rule),
            **self._options,
        )
        grad_query, grad_key, grad_value = (
            grad.view(batch, -1, *grad.shape[1:]).transpose(1, 2) for grad in grads[:3]
        )
        return grad_query, grad_key, grad_value

    def row_sums(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """See ``AttentionEngine``."""
        return row_sums(grad_out, out, backend=self.backend)


def _rule_arguments(rule: AttentionRule) -> dict[str, Any]:
    documents = rule.documents
    return {
        "causal": rule.window is None,
        "window_size_left": None if rule.window is None else rule.window - 1,
        "window_size_right": None if rule.window is None else 0,
        "cu_seqlens_q": documents.cu_seqlens(),
        "cu_seqlens_k": documents.cu_seqlens_keys(),
        "max_seqlen_q": documents.max_length,
        "max_seqlen_k": documents.max_length + documents.keys_before,
    }
