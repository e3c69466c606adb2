"""The dense scratch a grouped product reads: an expert group's weights, decoded just in time.

MXFP4 is decoded once per product into a bf16 scratch that the allocator hands out again for the
next layer. Decoding inside the product's loop instead pays only for a few rows: every row tile of
an expert would decode the same weight again. A large model is served in groups of experts, so that
the scratch stays below a bound.
"""

# Legend: E experts, N out and K in of the stored weight [E, N, K], R rank.

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gptoss_kernels.backend import launch, on_device
from gptoss_kernels.experts.projection import ExpertMatrices, ExpertProjection
from gptoss_kernels.mxfp4 import Mxfp4Weight, launch_dequantize

_MERGE_ROWS, _MERGE_COLUMNS = 16, 128
"""Tile of the merging kernel."""


class ExpertGroup(NamedTuple):
    """Consecutive experts and their matrices.

    Attributes:
        first: First expert.
        last: One past the last expert.
        matrices: ``[last - first, N, K]`` of the product at hand, any strides.
    """

    first: int
    last: int
    matrices: Tensor


def expert_groups(matrices: ExpertMatrices, scratch_bytes: int) -> Iterator[ExpertGroup]:
    """Yield the matrices of all experts, group by group, decoded on the device by Triton.

    A group's matrices are valid until the next one is asked for: groups share one scratch.

    Args:
        matrices: What to serve.
        scratch_bytes: Bound of the scratch; one expert is the least.

    Yields:
        The groups in the order of the experts.
    """
    projection, weight = matrices.projection, matrices.projection.weight
    num_experts, out_features, in_features = projection.logical_shape
    if isinstance(weight, Tensor) and weight.dtype == matrices.dtype and not matrices.merged:
        stack = weight if matrices.transposed else weight.mT
        yield ExpertGroup(0, num_experts, stack)
        return
    per_expert = out_features * in_features * torch.finfo(matrices.dtype).bits // 8
    size = min(num_experts, max(1, scratch_bytes // per_expert))
    scratch = torch.empty(
        (size, out_features, in_features), dtype=matrices.dtype, device=projection.device
    )
    for first in range(0, num_experts, size):
        last = min(first + size, num_experts)
        stack = scratch[: last - first]
        _fill(stack, projection, first, last, matrices.merged)
        yield ExpertGroup(first, last, stack.mT if matrices.transposed else stack)


def is_turned(matrices: ExpertMatrices) -> bool:
    """Return whether ``expert_groups`` yields matrices with N contiguous instead of K."""
    weight = matrices.projection.weight
    stored_as_is = isinstance(weight, Tensor) and weight.dtype == matrices.dtype
    # A dense base is stored [E, in, out], the scratch [E, out, in].
    return matrices.transposed != (stored_as_is and not matrices.merged)


def _fill(stack: Tensor, projection: ExpertProjection, first: int, last: int, merged: bool) -> None:
    """Write experts ``first`` to ``last - 1`` into ``stack [n, out, in]``."""
    weight = projection.weight
    if merged and (projection.lora_A is not None or isinstance(weight, Tensor)):
        _fill_merged(stack, projection, first, last)
    elif isinstance(weight, Mxfp4Weight):
        launch_dequantize(weight.blocks[first:last], weight.scales[first:last], stack)
    else:
        stack.copy_(weight[first:last].mT)


def _fill_merged(stack: Tensor, projection: ExpertProjection, first: int, last: int) -> None:
    """Write ``decode(Q(W + s B A))`` of some experts into ``stack``."""
    from gptoss_kernels._triton import _mxfp4

    weight = projection.weight
    blocks = scales = dense = lora_A = lora_B = None
    strides = (0, 0, 0)
    if isinstance(weight, Mxfp4Weight):
        blocks, scales = weight.blocks[first:last], weight.scales[first:last]
    else:
        dense = weight[first:last].mT
        strides = dense.stride()
    if projection.lora_A is not None and projection.lora_B is not None:
        lora_A = projection.lora_A[first:last].contiguous()
        lora_B = projection.lora_B[first:last].contiguous()
    num_experts, rows, columns = stack.shape
    grid = (-(-columns // _MERGE_COLUMNS), -(-rows // _MERGE_ROWS), num_experts)
    with on_device(stack):
        launch(
            _mxfp4._merged_kernel,
            grid,
            blocks,
            scales,
            dense,
            *strides,
            lora_A,
            lora_B,
            projection.scaling,
            stack,
            N=rows,
            K=columns,
            R=projection.rank,
            PACKED=blocks is not None,
            BLOCK_N=_MERGE_ROWS,
            BLOCK_K=_MERGE_COLUMNS,
            # A fused multiply-add rounds once where the definition rounds twice.
            enable_fp_fusion=False,
        )
