"""Grouped matrix product: each expert's rows times that expert's matrix, bias and rank-r term.

``out[i] = rows[i] @ W_e^T + bias_e + s * low_rank_rows[i] @ B_e^T``, e the expert of sorted row i.
The rank-r term is one more small product added to the same output; it is why a LoRA layer costs
little more than the frozen one.
"""

# Legend: M rows, E experts, N columns out, K columns in (of this product), R rank.

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from gptoss_kernels.projection import ExpertMatrices


@dataclass(frozen=True)
class LowRankTerm:
    """``scaling * rows @ factor[e]^T``, added to a grouped product.

    Attributes:
        rows: ``[M, R]``, in the order of the sorted rows.
        factor: ``[E, N, R]``, any strides.
        scaling: A plain number.
    """

    rows: Tensor
    factor: Tensor
    scaling: float


def grouped_matmul_reference(
    rows: Tensor,
    matrices: ExpertMatrices | Tensor,
    expert_offsets: Tensor,
    *,
    token_indices: Tensor | None = None,
    bias: Tensor | None = None,
    low_rank: LowRankTerm | None = None,
) -> Tensor:
    """Multiply each expert's rows by its matrix, one expert after the other.

    Args:
        rows: ``[M, K]`` sorted by expert, or ``[T, K]`` with ``token_indices``.
        matrices: ``ExpertMatrices``, or a tensor ``[E, N, K]``.
        expert_offsets: ``[E + 1]`` int32.
        token_indices: ``[M]``, the row of ``rows`` that belongs to each sorted row.
        bias: ``[E, N]`` or None.
        low_rank: A rank-r term or None.

    Returns:
        ``[M, N]`` in the dtype of ``rows``; rows past ``expert_offsets[E]`` are zero.
    """
    offsets: list[int] = expert_offsets.tolist()
    num_rows = rows.shape[0] if token_indices is None else token_indices.shape[0]
    out = rows.new_zeros((num_rows, matrices.shape[-2]))
    for expert, (start, stop) in enumerate(pairwise(offsets)):
        if start == stop:
            continue
        part = rows[start:stop] if token_indices is None else rows[token_indices[start:stop]]
        matrix = matrices[expert] if isinstance(matrices, Tensor) else matrices.expert(expert)
        product = part @ matrix.mT
        if bias is not None:
            product += bias[expert]
        if low_rank is not None:
            product.addmm_(
                low_rank.rows[start:stop], low_rank.factor[expert].mT, alpha=low_rank.scaling
            )
        out[start:stop] = product
    return out
