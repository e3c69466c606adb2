"""The flash kernels that come with torch as an engine of attention with sinks.

They know causal, window and documents, give the log-sum-exp in fp32 and run a backward from any
(O, LSE) pair, which is all that sinks need; what torch offers in Python on top of them (``sdpa``,
``varlen_attn``) hides one of the two. Everything goes through the varlen form: a padded batch is a
row of documents as well, and there is one path to prove. A part of a row has more keys than
queries in its first document; causal and window count from the last key then ("bottom-right", as of
FlashAttention 2.1).

B rows, S tokens of a row, Hq query heads, Hkv key-value heads, D head size, T = B * S, P keys
before the first query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptoss_kernels.attention.interface import AttentionRule
from gptoss_kernels.attention.sinks import add_sinks, row_sums
from gptoss_kernels.backend import Backend


class TorchFlashEngine:
    """torch's ``_flash_attention_forward`` and ``_flash_attention_backward`` with LSE'."""

    def __init__(self, backend: Backend) -> None:
        """Let ``backend`` add the sinks."""
        self.backend: Backend = backend

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        """See ``AttentionEngine``."""
        batch, heads, length, _ = query.shape
        flash = torch.ops.aten._flash_attention_forward
        out, lse, *_ = flash(
            to_rows(query),
            to_rows(key),
            to_rows(value),
            *_runs(rule),
            0.0,
            True,
            False,
            scale=rule.scaling,
            **_window(rule),
        )
        lse = lse.view(heads, batch, length).transpose(0, 1)
        return add_sinks(out.view(batch, length, heads, -1), lse, sinks, backend=self.backend)

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
        random_state = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of no dropout
        unused = torch.empty(0, device=query.device)
        flash = torch.ops.aten._flash_attention_backward
        grads = flash(
            grad_out.reshape(batch * length, heads, -1),
            to_rows(query),
            to_rows(key),
            to_rows(value),
            out.view(batch * length, heads, -1),
            lse.transpose(0, 1).reshape(heads, batch * length),
            *_runs(rule),
            0.0,
            True,
            random_state,
            unused,
            scale=rule.scaling,
            **_window(rule),
        )
        grad_query, grad_key, grad_value = (
            grad.view(batch, -1, *grad.shape[1:]).transpose(1, 2) for grad in grads
        )
        return grad_query, grad_key, grad_value

    def row_sums(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """See ``AttentionEngine``."""
        return row_sums(grad_out, out, backend=self.backend)


def to_rows(heads_first: Tensor) -> Tensor:
    """Return ``[B, heads, S, D]`` as ``[T, heads, D]``, a view where B is 1."""
    return heads_first.transpose(1, 2).flatten(0, 1)


def _runs(rule: AttentionRule) -> tuple[Tensor, Tensor, int, int]:
    """Return ``cu_seqlens`` and the longest run, of queries and of keys, as flash takes them."""
    documents = rule.documents
    longest = documents.max_length
    return (
        documents.cu_seqlens(),
        documents.cu_seqlens_keys(),
        longest,
        longest + documents.keys_before,
    )


def _window(rule: AttentionRule) -> dict[str, int]:
    """Return the window in the flash libraries' counting, which leaves the token itself out."""
    if rule.window is None:
        return {}
    return {"window_size_left": rule.window - 1, "window_size_right": 0}
