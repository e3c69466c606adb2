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

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gptoss_kernels.backend import Backend, launch, on_device, require_backend, require_triton
from gptoss_kernels.tiles import choose_outer_tiles, gpu_of

MAX_RANK = 256
"""The largest rank on Triton: a program holds the rank's side of a tile whole."""
_CHUNK_ROWS = 512
"""Rows of a weight merged at a time: the R passes over them stay in the cache."""


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


def ragged_outer(
    skinny: Tensor,
    wide: Tensor,
    expert_offsets: Tensor,
    *,
    wide_indices: Tensor | None = None,
    gates: Tensor | None = None,
    scaling: float = 1.0,
    transposed: bool = False,
    backend: Backend = "torch",
) -> Tensor:
    """Return ``out[e] = scaling * (gates * skinny)[rows of e]^T wide[rows of e]``.

    The gradient of a LoRA factor: with skinny = ``dZB`` and wide = X it is that of A, with skinny =
    XA and wide = dZ and ``transposed`` that of B. Not differentiable itself.

    Args:
        skinny: ``[M, R]`` floating, columns contiguous.
        wide: ``[M, Q]`` floating, columns contiguous, or ``[T, Q]`` with ``wide_indices``.
        expert_offsets: ``[E + 1]`` int32.
        wide_indices: ``[M]`` int32, the row of ``wide`` that belongs to each sorted row.
        gates: ``[M]`` floating or None.
        scaling: A plain number.
        transposed: Return ``[E, Q, R]``.
        backend: "torch" or "triton".

    Returns:
        ``[E, R, Q]`` (or ``[E, Q, R]``) fp32, fp64 for fp64; zero for an expert without rows.

    Raises:
        ValueError: Columns that are not contiguous, two dtypes, on Triton a rank above
            ``MAX_RANK``, or a backend that cannot run.

    See ``ragged_outer_reference``.
    """
    require_backend(backend)
    if skinny.dtype != wide.dtype:
        raise ValueError(f"ragged_outer needs one dtype, got {skinny.dtype} and {wide.dtype}")
    if skinny.stride(-1) != 1 or wide.stride(-1) != 1:
        raise ValueError("ragged_outer needs contiguous columns; call .contiguous()")
    if backend == "triton" and skinny.shape[1] > MAX_RANK:
        raise ValueError(
            f"ragged_outer on Triton needs a rank of at most {MAX_RANK}, got {skinny.shape[1]}"
        )
    if backend == "torch":
        if gates is not None:
            skinny = (skinny * gates[:, None]).to(skinny.dtype)
        out = ragged_outer_reference(skinny, wide, expert_offsets, right_indices=wide_indices)
        out.mul_(scaling)
        return out.mT.contiguous() if transposed else out
    require_triton("ragged_outer", skinny, wide, expert_offsets, wide_indices, gates)
    return launch_ragged_outer(
        skinny, wide, expert_offsets, wide_indices, gates, scaling, transposed
    )


def launch_ragged_outer(
    skinny: Tensor,
    wide: Tensor,
    expert_offsets: Tensor,
    wide_indices: Tensor | None,
    gates: Tensor | None,
    scaling: float,
    transposed: bool = False,
    sums: Tensor | None = None,
) -> Tensor:
    """Return ``ragged_outer`` by its kernel, or add it to ``sums``; the inputs have been checked.

    Args:
        skinny: As in ``ragged_outer``, like what follows.
        wide: ``[M, Q]``.
        expert_offsets: ``[E + 1]``.
        wide_indices: ``[M]`` or None.
        gates: ``[M]`` or None.
        scaling: A plain number.
        transposed: Return ``[E, Q, R]``.
        sums: What an earlier call with the same shapes returned, which then is the result: one more
            fp32 addition per value.
    """
    from gptoss_kernels._triton import _lora

    num_experts, rank, columns = expert_offsets.shape[0] - 1, skinny.shape[1], wide.shape[1]
    shape = (num_experts, columns, rank) if transposed else (num_experts, rank, columns)
    out = sums
    if out is None:
        out = torch.empty(shape, dtype=torch.float32, device=wide.device)
    logical = out.mT if transposed else out
    tiles = choose_outer_tiles(rank, wide.dtype, gpu_of(wide.device))
    with on_device(wide):
        launch(
            _lora._ragged_outer_kernel,
            (-(-columns // tiles.block_n), num_experts),
            skinny,
            skinny.stride(0),
            wide,
            wide.stride(0),
            wide_indices,
            gates,
            expert_offsets,
            out,
            *logical.stride(),
            scaling,
            Q=columns,
            R=rank,
            R_PAD=tiles.block_k,
            GATHER=wide_indices is not None,
            GATED=gates is not None,
            ADDED=sums is not None,
            BLOCK_Q=tiles.block_n,
            BLOCK_M=tiles.block_m,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    return out


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


def add_ragged_outer_reference(
    sums: Tensor | None,
    left: Tensor,
    right: Tensor,
    *,
    expert_offsets: Tensor,
    scaling: float,
    left_indices: Tensor | None = None,
    right_indices: Tensor | None = None,
) -> Tensor:
    """Return ``sums + scaling * ragged_outer_reference(...)``, in the memory of ``sums``.

    Args:
        sums: ``[E, P, Q]`` fp32 (fp64 for fp64), or None for zeros.
        left: As in ``ragged_outer_reference``, like what follows.
        right: ``[M, Q]``.
        expert_offsets: ``[E + 1]``.
        scaling: A plain number.
        left_indices: ``[M]`` or None.
        right_indices: ``[M]`` or None.
    """
    out = ragged_outer_reference(
        left, right, expert_offsets, left_indices=left_indices, right_indices=right_indices
    ).mul_(scaling)
    return out if sums is None else sums.add_(out)
