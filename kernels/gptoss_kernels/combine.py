"""Combine: a token's output is the weighted sum of the rows its experts made.

Each token gathers its K rows and adds them in the order of k in fp32: no atomics, so the same
input gives the same bits. Rejected: scattering rows with atomic adds, whose order changes from run
to run.
"""

# Legend: T tokens, K experts per token, M rows, H hidden.

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptoss_kernels.backend import Backend, launch, on_device, require_backend, require_triton

_BLOCK = 1024
"""Columns a program adds up, or (token, choice) pairs it serves, at a time."""


def combine(
    rows: Tensor,
    row_indices: Tensor,
    weights: Tensor | None = None,
    *,
    backend: Backend = "torch",
) -> Tensor:
    """Return ``out[t] = sum_k weights[t, k] * rows[row_indices[t, k]]``, differentiable.

    Each row belongs to one (token, choice) at most, as ``route`` makes it; rows that belong to none
    may hold anything and get a zero gradient.

    Args:
        rows: ``[M, H]`` floating, contiguous.
        row_indices: ``[T, K]`` int32, contiguous, -1 where absent.
        weights: ``[T, K]`` floating, contiguous, or None for ones.
        backend: "torch" or "triton".

    Returns:
        ``[T, H]`` in the dtype of ``rows``, summed in fp32 in the order of k.

    Raises:
        ValueError: A shape, dtype or layout that does not fit, or a backend that cannot run.

    See ``combine_reference``.
    """
    require_backend(backend)
    shape = tuple(row_indices.shape)
    if rows.dim() != 2 or len(shape) != 2 or row_indices.dtype != torch.int32:
        raise ValueError(
            f"combine needs rows [M, H] and int32 row_indices [T, K], got {tuple(rows.shape)} and "
            f"{row_indices.dtype} {shape}"
        )
    if weights is not None and tuple(weights.shape) != shape:
        raise ValueError(f"weights needs shape {shape}, got {tuple(weights.shape)}")
    for name, tensor in (("rows", rows), ("row_indices", row_indices), ("weights", weights)):
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} needs to be contiguous; call .contiguous()")
    if backend == "torch":
        return combine_reference(rows, row_indices, weights)
    require_triton("combine", rows, row_indices, weights)
    return _Combine.apply(rows, weights, row_indices)


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


class _Combine(torch.autograd.Function):
    """``combine`` on Triton as one node."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor | None, row_indices: Tensor) -> Tensor:
        """Gather, weigh and add."""
        ctx.save_for_backward(rows if weights is not None else None, weights, row_indices)
        ctx.rows_like = (rows.shape, rows.dtype)
        return launch_combine(rows, row_indices, weights)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Spread the gradient over the rows; multiply it with the rows for the weights."""
        from gptoss_kernels._triton import _combine

        rows, weights, row_indices = ctx.saved_tensors
        shape, dtype = ctx.rows_like
        d_out = d_out.contiguous()
        d_rows = torch.zeros(shape, dtype=dtype, device=d_out.device)
        d_weights = None if weights is None else torch.empty_like(weights)
        if row_indices.numel():
            with on_device(d_out):
                launch(
                    _combine._combine_backward_kernel,
                    (row_indices.numel(),),
                    d_out,
                    rows,
                    row_indices,
                    weights,
                    d_rows,
                    d_weights,
                    H=shape[1],
                    K=row_indices.shape[1],
                    WEIGHTED=weights is not None,
                    BLOCK=_BLOCK,
                )
        return d_rows, d_weights, None


def launch_combine(rows: Tensor, row_indices: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return ``combine`` without a graph; the inputs have been checked."""
    from gptoss_kernels._triton import _combine

    num_tokens, top_k = row_indices.shape
    hidden = rows.shape[1]
    out = torch.empty((num_tokens, hidden), dtype=rows.dtype, device=rows.device)
    if num_tokens:
        with on_device(rows):
            launch(
                _combine._combine_kernel,
                (num_tokens, -(-hidden // _BLOCK)),
                rows,
                row_indices,
                weights,
                out,
                H=hidden,
                K=top_k,
                WEIGHTED=weights is not None,
                BLOCK=_BLOCK,
            )
    return out


def launch_routing_gradient(
    share: Tensor, against_bias: Tensor | None, row_indices: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return ``share[row] + against_bias[row]`` for every (token, choice), zero where absent.

    Args:
        share: ``[M]`` fp32.
        against_bias: ``[M]`` floating, any stride, or None.
        row_indices: ``[T, K]`` int32, contiguous, -1 where absent.
        dtype: Of the result.

    Returns:
        ``[T, K]``, the gradient of the routing weights.
    """
    from gptoss_kernels._triton import _combine

    out = torch.empty(row_indices.shape, dtype=dtype, device=share.device)
    count = row_indices.numel()
    if count:
        with on_device(share):
            launch(
                _combine._routing_gradient_kernel,
                (-(-count // _BLOCK),),
                share,
                against_bias,
                0 if against_bias is None else against_bias.stride(0),
                row_indices,
                out,
                count,
                BIAS=against_bias is not None,
                BLOCK=_BLOCK,
            )
    return out
