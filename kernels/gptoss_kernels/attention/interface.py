"""What attention asks of an engine: O and LSE forward, dQ, dK and dV backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from gptoss_kernels.attention.documents import Documents


@dataclass(frozen=True)
class AttentionRule:
    """What a query sees and how its scores are scaled.

    Attributes:
        scaling: Factor of ``Q K^T``.
        window: Keys a query sees, the token itself included: gpt-oss's 128 is ``window_left = 127``
            of the flash libraries. ``None``: all keys up to the token.
        documents: The runs of tokens that see each other. With ``documents.keys_before`` P there
            are P keys more than queries, and query i stands at key ``P + i``: "bottom-right" in the
            flash libraries.
    """

    scaling: float
    window: int | None
    documents: Documents


class AttentionEngine(Protocol):
    """Forward and backward of attention with sinks, without autograd.

    Key and value have P tokens more than query (``AttentionRule.documents``): P is 0 unless a row
    is spread over ranks, and then B is 1.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        """Return ``O' [B, S, Hq, D]`` in the dtype of query and ``LSE' [B, Hq, S]`` fp32."""
        ...

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
        """Return dQ, dK, dV as ``[B, heads, tokens, D]``."""
        ...

    def row_sums(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """Return ``rowsum(dO * O') [B, Hq, S]``: called where the sinks are trained, only then."""
        ...


@dataclass
class KeptAttention:
    """O' and LSE' of one call, for the call that recomputes it under activation checkpointing.

    A layer that is run again needs its queries, keys and values again, but not the S^2 work between
    them: 8.4 KB per token instead. The first call fills it, the second takes from it and empties
    it.

    Attributes:
        out: ``[B, S, Hq, D]``.
        lse: ``[B, Hq, S]`` fp32.
    """

    out: Tensor | None = None
    lse: Tensor | None = None


@runtime_checkable
class DifferentiableEngine(Protocol):
    """An engine that brings its own autograd, sinks included."""

    def differentiable(
        self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, rule: AttentionRule
    ) -> Tensor:
        """Return ``O' [B, S, Hq, D]``, differentiable in query, key, value and sinks."""
        ...
