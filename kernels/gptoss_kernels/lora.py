"""The low-rank side of an expert projection: skinny products and their ragged reductions.

A LoRA pair on experts adds ``scaling * B_e A_e`` to expert e. It is never added to the weight:
``XA = X A^T`` has a handful of columns, rides through the large product as one rank-r term, and its
gradients are sums over an expert's rows. Rejected: building ``W + s B A`` (PEFT's way), which makes
a dense copy of all experts on every forward and a dense gradient of it on every backward.

``merged_expert_reference`` is the one definition of a merged expert weight, whose order of
operations is fixed so that every device that follows it gets the same bits.
"""

# Legend: M rows, E experts, R rank; A [E, R, in], B [E, out, R].

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

_CHUNK_ROWS = 512
"""Rows of a weight merged at a time: the R passes over them stay in the cache."""


def merged_expert_reference(
    weight: Tensor, lora_A: Tensor, lora_B: Tensor, scaling: float
) -> Tensor:
    """Return ``weight + scaling * (B A)`` in fp32, one rounding after each product and each sum.

    The sum over the rank runs from 0 to R - 1, one multiply and one add at a time. A matrix product
    would be free to choose its order, and a last bit can turn a rounding to MXFP4: with a fixed
    order the weights of merge-aware training are those of the exported file, bit for bit.

    Args:
        weight: ``[out, in]`` floating, one expert.
        lora_A: ``[R, in]`` floating.
        lora_B: ``[out, R]`` floating.
        scaling: ``alpha / rank``.

    Returns:
        ``[out, in]`` fp32.
    """
    merged = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    factor_a, factor_b = lora_A.float(), lora_B.float()
    for start in range(0, weight.shape[0], _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        delta = torch.zeros_like(merged[part])
        for index in range(factor_a.shape[0]):
            delta += factor_b[part, index, None] * factor_a[index]
        merged[part] = weight[part].float() + delta * scaling
    return merged


def ragged_outer_reference(
    left: Tensor,
    right: Tensor,
    expert_offsets: Tensor,
    *,
    left_indices: Tensor | None = None,
    right_indices: Tensor | None = None,
) -> Tensor:
    """Return ``out[e] = left[rows of e]^T right[rows of e]``, the gradient of a LoRA factor.

    Args:
        left: ``[M, P]`` floating, or ``[T, P]`` with ``left_indices``.
        right: ``[M, Q]`` floating, or ``[T, Q]`` with ``right_indices``.
        expert_offsets: ``[E + 1]`` int32.
        left_indices: ``[M]``, the row of ``left`` that belongs to each sorted row.
        right_indices: ``[M]``, likewise.

    Returns:
        ``[E, P, Q]`` fp32 (fp64 for fp64), zero for an expert without rows.
    """
    offsets: list[int] = expert_offsets.tolist()
    wide = torch.promote_types(left.dtype, torch.float32)
    out = left.new_zeros((len(offsets) - 1, left.shape[1], right.shape[1]), dtype=wide)
    for expert, (start, stop) in enumerate(pairwise(offsets)):
        if start == stop:
            continue
        left_rows = left[start:stop] if left_indices is None else left[left_indices[start:stop]]
        right_rows = (
            right[start:stop] if right_indices is None else right[right_indices[start:stop]]
        )
        torch.mm(left_rows.to(wide).mT, right_rows.to(wide), out=out[expert])
    return out
