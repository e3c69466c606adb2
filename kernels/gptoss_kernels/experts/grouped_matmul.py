"""Grouped matrix product: each expert's rows times that expert's matrix, bias and rank-r term.

``out[i] = rows[i] @ W_e^T + bias_e + s * low_rank_rows[i] @ B_e^T``, e the expert of sorted row i.
The rank-r term is one more small product added to the same output; it is why a LoRA layer costs
little more than the frozen one.
"""

# Legend: M rows, E experts, N columns out, K columns in (of this product), R rank.

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptoss_kernels.backend import Backend, require_backend, require_triton
from gptoss_kernels.experts.projection import ExpertMatrices
from gptoss_kernels.lora import LowRankTerm, ragged_outer
from gptoss_kernels.persistent import TileMaps, launch_product
from gptoss_kernels.tiles import Product, choose_tiles, gpu_of


def grouped_matmul(
    rows: Tensor,
    matrices: Tensor,
    expert_offsets: Tensor,
    *,
    token_indices: Tensor | None = None,
    bias: Tensor | None = None,
    low_rank: LowRankTerm | None = None,
    backend: Backend = "torch",
) -> Tensor:
    """Multiply each expert's rows by its matrix: ``rows W_e^T + bias_e + s low B_e^T``.

    Differentiable in ``rows`` and in both tensors of ``low_rank``; matrices and biases are frozen.

    Args:
        rows: ``[M, K]`` sorted by expert, or ``[T, K]`` with ``token_indices``; columns contiguous.
        matrices: ``[E, N, K]``, any strides, dtype of ``rows``.
        expert_offsets: ``[E + 1]`` int32, first 0, not falling, last at most M.
        token_indices: ``[M]`` int32. A token may own several rows; its gradient is their sum.
        bias: ``[E, N]`` contiguous or None.
        low_rank: A rank-r term or None.
        backend: "torch" goes expert by expert; "triton" is one persistent kernel.

    Returns:
        ``[M, N]`` in the dtype of ``rows``; rows past ``expert_offsets[E]`` are zero.

    Raises:
        ValueError: Shapes, dtypes or layouts that do not fit; a matrix or bias that asks for a
            gradient; offsets out of range (checked where the host can see them, on a CPU); a
            backend that cannot run.

    See ``grouped_matmul_reference``.
    """
    require_backend(backend)
    _check(rows, matrices, expert_offsets, token_indices, bias, low_rank)
    if backend == "triton":
        require_triton("grouped_matmul", rows, matrices, expert_offsets, token_indices, bias)
    low_rows = factor = None
    scaling = 0.0
    if low_rank is not None:
        low_rows, factor, scaling = low_rank.rows, low_rank.factor, low_rank.scaling
    call = _Call(matrices, expert_offsets, token_indices, bias, scaling, backend)
    return _GroupedMatmul.apply(rows, low_rows, factor, call)


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


@dataclass(frozen=True)
class _Call:
    """The inputs of ``grouped_matmul`` that get no gradient."""

    matrices: Tensor
    expert_offsets: Tensor
    token_indices: Tensor | None
    bias: Tensor | None
    scaling: float
    backend: Backend

    def product(
        self,
        rows: Tensor,
        matrices: Tensor,
        low_rank: LowRankTerm | None = None,
        *,
        gather: bool = False,
        bias: bool = False,
    ) -> Tensor:
        """Return one grouped product of this call's experts."""
        indices = self.token_indices if gather else None
        added = self.bias if bias else None
        if self.backend == "torch":
            return grouped_matmul_reference(
                rows,
                matrices,
                self.expert_offsets,
                token_indices=indices,
                bias=added,
                low_rank=low_rank,
            )
        return grouped_product(
            rows, matrices, self.expert_offsets, indices=indices, bias=added, low_rank=low_rank
        )


class _GroupedMatmul(torch.autograd.Function):
    """``grouped_matmul`` as one node."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, low_rows: Tensor | None, factor: Tensor | None, call: _Call
    ) -> Tensor:
        """Multiply."""
        ctx.save_for_backward(low_rows, factor)
        ctx.call, ctx.num_tokens = call, rows.shape[0]
        low_rank = None
        if low_rows is not None and factor is not None:
            low_rank = LowRankTerm(low_rows, factor, call.scaling)
        return call.product(rows, call.matrices, low_rank, gather=True, bias=True)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Multiply by the transposed matrices; reduce over rows for the factor."""
        low_rows, factor = ctx.saved_tensors
        call: _Call = ctx.call
        d_out = d_out.contiguous()
        d_rows = d_low = d_factor = None
        if ctx.needs_input_grad[0]:
            d_rows = call.product(d_out, call.matrices.mT)
            if call.token_indices is not None:
                wide = torch.promote_types(d_rows.dtype, torch.float32)
                total = torch.zeros((ctx.num_tokens, d_rows.shape[1]), dtype=wide).to(d_rows.device)
                total.index_add_(0, call.token_indices, d_rows.to(wide))
                d_rows = total.to(d_rows.dtype)
        if factor is not None:
            d_low = call.product(d_out, factor.mT) * call.scaling
            d_factor = ragged_outer(
                low_rows,
                d_out,
                call.expert_offsets,
                scaling=call.scaling,
                transposed=True,
                backend=call.backend,
            ).to(factor.dtype)
        return d_rows, d_low, d_factor, None


def _check(
    rows: Tensor,
    matrices: Tensor,
    expert_offsets: Tensor,
    token_indices: Tensor | None,
    bias: Tensor | None,
    low_rank: LowRankTerm | None,
) -> None:
    """Raise ValueError for what would give a wrong number."""
    num_experts, columns, inner = matrices.shape if matrices.dim() == 3 else (0, 0, 0)
    num_rows = rows.shape[0] if token_indices is None else token_indices.shape[0]
    wanted = {
        "rows": (rows, (rows.shape[0], inner), rows.dtype),
        "matrices": (matrices, (num_experts, columns, inner), rows.dtype),
        "expert_offsets": (expert_offsets, (num_experts + 1,), torch.int32),
        "token_indices": (token_indices, (num_rows,), torch.int32),
        "bias": (bias, (num_experts, columns), None),
    }
    if low_rank is not None:
        rank = low_rank.rows.shape[-1]
        wanted["low_rank.rows"] = (low_rank.rows, (num_rows, rank), rows.dtype)
        wanted["low_rank.factor"] = (low_rank.factor, (num_experts, columns, rank), rows.dtype)
    for name, (tensor, shape, dtype) in wanted.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape or (dtype is not None and tensor.dtype != dtype):
            raise ValueError(
                f"{name} needs shape {shape} and {dtype}, got {tuple(tensor.shape)} {tensor.dtype}"
            )
        if name not in ("matrices", "low_rank.factor") and tensor.stride(-1) != 1:
            raise ValueError(f"{name} needs contiguous columns; call .contiguous()")
        if name in ("matrices", "bias") and tensor.requires_grad:
            raise ValueError(f"{name} is frozen here but has requires_grad=True")
    if expert_offsets.device.type == "cpu":
        offsets: list[int] = expert_offsets.tolist()
        if offsets[0] != 0 or offsets != sorted(offsets) or offsets[-1] > num_rows:
            raise ValueError(
                f"expert_offsets needs to start at 0, never fall and end at {num_rows} or less, "
                f"got {offsets}"
            )


def grouped_product(
    rows: Tensor,
    matrices: Tensor,
    expert_offsets: Tensor,
    *,
    indices: Tensor | None = None,
    bias: Tensor | None = None,
    low_rank: LowRankTerm | None = None,
    width: int | None = None,
) -> Tensor:
    """Return a grouped product by the persistent kernel, without a graph.

    Args:
        rows: As in ``grouped_matmul``.
        matrices: ``[E, N, K]``, any strides.
        expert_offsets: ``[E + 1]`` int32.
        indices: ``[M]`` or None.
        bias: ``[E, N]`` or None.
        low_rank: A rank-r term or None.
        width: Columns to allocate, N up to the next multiple of 16: rows of the result then start
            at aligned addresses.

    Returns:
        ``[M, N]``, a view of ``[M, width]``; rows past the last expert's are zero.
    """
    num_rows = rows.shape[0] if indices is None else indices.shape[0]
    columns, inner = matrices.shape[1:]
    out = rows.new_zeros((num_rows, width or columns))
    gpu = gpu_of(rows.device)
    kind: Product = "skinny" if columns <= 128 else "store"
    rank = 0 if low_rank is None else low_rank.rows.shape[1]
    tiles = choose_tiles(kind, n=columns, k=inner, dtype=rows.dtype, gpu=gpu, rank=rank)
    launch_product(
        rows,
        matrices,
        TileMaps(expert_offsets, num_rows).get(tiles.block_m, 0, matrices.shape[0]),
        tiles,
        out,
        indices=indices,
        bias=bias,
        low_rank=low_rank,
    )
    return out[:, :columns]
