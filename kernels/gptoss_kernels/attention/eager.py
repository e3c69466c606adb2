"""The exact engine of attention with sinks in plain torch: any device, any dtype, bounded memory.

Queries are taken in pieces of a few hundred rows and scored against the keys that the piece can see
at all: a window layer costs ``S * window`` and not ``S^2``, and a packed row costs the sum of its
documents' squares. Scores live in fp32 (fp64 for fp64 inputs), one piece at a time, and are
computed again in backward, so memory grows with S and not with its square.

Rejected: ``torch.nn.functional.scaled_dot_product_attention`` on the CPU, which gives no LSE, and
without it the sink's share of the softmax and its gradient cannot be found.

B rows, S tokens of a row, Hq query heads, Hkv key-value heads, G = Hq / Hkv, D head size, P piece.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gptoss_kernels.attention.interface import AttentionRule
from gptoss_kernels.attention.sinks import row_sums

_PIECE_ROWS = 256


class EagerEngine:
    """Torch operations only; the truth that faster engines are measured against."""

    def __init__(self, piece_rows: int = _PIECE_ROWS) -> None:
        """Take ``piece_rows`` queries at a time."""
        self.piece_rows = piece_rows

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        """See ``AttentionEngine``."""
        batch, heads, length, size = query.shape
        groups = key.shape[1]
        wide = _wide_dtype(query.dtype)
        key, value = key.to(wide), value.to(wide)
        sink = sinks.to(wide).view(1, groups, -1, 1)
        out = query.new_empty(batch, length, heads, size)
        lse = torch.empty(batch, heads, length, dtype=wide, device=query.device)
        for rows, columns, hidden in self._pieces(query, rule):
            part = _grouped(query[:, :, rows], groups, wide)
            scores = _scores(part, key[:, :, columns], rule.scaling, hidden)
            row_lse = torch.logaddexp(scores.logsumexp(dim=-1), sink)
            weights = scores.sub_(row_lse.unsqueeze(-1)).exp_()
            mixed = weights.flatten(2, 3) @ value[:, :, columns]
            out[:, rows] = mixed.view(batch, heads, -1, size).transpose(1, 2).to(query.dtype)
            lse[:, :, rows] = row_lse.view(batch, heads, -1)
        return out, lse

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
        """See ``AttentionEngine``; fp32 sums of dK and dV over the pieces."""
        groups = key.shape[1]
        wide = lse.dtype
        delta = row_sums(grad_out, out, backend="torch")
        wide_key, wide_value = key.to(wide), value.to(wide)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(wide_key), torch.zeros_like(wide_value)
        for rows, columns, hidden in self._pieces(query, rule):
            part = _grouped(query[:, :, rows], groups, wide)
            grad = _grouped(grad_out[:, rows].transpose(1, 2), groups, wide)
            scores = _scores(part, wide_key[:, :, columns], rule.scaling, hidden)
            weights = scores.sub_(lse[:, :, rows].unflatten(1, (groups, -1)).unsqueeze(-1)).exp_()
            flat_weights = weights.flatten(2, 3)
            grad_value[:, :, columns] += flat_weights.mT @ grad
            grad_scores = (grad @ wide_value[:, :, columns].mT).view_as(weights)
            grad_scores -= delta[:, :, rows].unflatten(1, (groups, -1)).unsqueeze(-1)
            grad_scores *= weights
            flat = grad_scores.flatten(2, 3).mul_(rule.scaling)
            grad_part = flat @ wide_key[:, :, columns]
            grad_query[:, :, rows] = grad_part.view_as(query[:, :, rows]).to(query.dtype)
            grad_key[:, :, columns] += flat.mT @ part
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)

    def row_sums(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """See ``AttentionEngine``."""
        return row_sums(grad_out, out, backend="torch")

    def _pieces(self, query: Tensor, rule: AttentionRule) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield rows, the columns they may see, and what is hidden ``[B, 1, 1, P, columns]``."""
        length, before = query.shape[2], rule.documents.keys_before
        first_key = rule.documents.first_key
        for start in range(0, length, self.piece_rows):
            stop = min(start + self.piece_rows, length)
            low = 0 if rule.window is None else max(0, before + start - rule.window + 1)
            if query.device.type == "cpu":  # elsewhere reading a value would stall the device
                low = max(low, int(first_key[:, start].min()))
            rows = torch.arange(before + start, before + stop, device=query.device)[:, None]
            columns = torch.arange(low, before + stop, device=query.device)
            hidden = (columns > rows) | (columns < first_key[:, start:stop, None])
            if rule.window is not None:
                hidden |= columns <= rows - rule.window
            yield slice(start, stop), slice(low, before + stop), hidden[:, None, None]


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _grouped(heads_first: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """Return ``[B, Hq, P, D]`` as ``[B, Hkv, G * P, D]``: one product per key-value head."""
    return heads_first.to(dtype).unflatten(1, (groups, -1)).flatten(2, 3)


def _scores(part: Tensor, key: Tensor, scaling: float, hidden: Tensor) -> Tensor:
    """Return ``Q K^T * scaling`` as ``[B, Hkv, G, P, columns]``, -inf where hidden."""
    scores = (part @ key.mT).mul_(scaling).unflatten(2, (-1, hidden.shape[-2]))
    return scores.masked_fill_(hidden, float("-inf"))
