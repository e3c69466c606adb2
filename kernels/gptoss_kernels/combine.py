"""Combine: a token's output is the weighted sum of the rows its experts made.

Each token gathers its K rows and adds them in the order of k in fp32: no atomics, so the same
input gives the same bits. Rejected: scattering rows with atomic adds, whose order changes from run
to run.
"""

# Legend: T tokens, K experts per token, M rows, H hidden.

from __future__ import annotations

import torch
from torch import Tensor


def combine_reference(rows: Tensor, row_indices: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return ``out[t] = sum_k weights[t, k] * rows[row_indices[t, k]]``.

    Args:
        rows: ``[M, H]`` floating.
        row_indices: ``[T, K]`` int32; -1 counts as zero, whatever ``rows`` holds.
        weights: ``[T, K]`` floating, or None for ones.

    Returns:
        ``[T, H]`` in the dtype of ``rows``, summed in fp32 (fp64 for fp64).
    """
    num_tokens, top_k = row_indices.shape
    wide = torch.promote_types(rows.dtype, torch.float32)
    total = rows.new_zeros((num_tokens, rows.shape[1]), dtype=wide)
    if rows.shape[0] == 0:
        return total.to(rows.dtype)
    for choice in range(top_k):
        index = row_indices[:, choice]
        term = rows[index.clamp(min=0)].to(wide)
        if weights is not None:
            term = term * weights[:, choice, None].to(wide)
        total += torch.where((index >= 0)[:, None], term, 0)
    return total.to(rows.dtype)
