"""torch's own grouped product as an engine, behind a proof.

``torch.nn.functional.grouped_mm`` is CUTLASS on NVIDIA GPUs. Its offsets are cumulative ends, its
rows past the last one stay unwritten, and strides have to be whole multiples of 16 bytes. Each
device is asked once, at the widths of gpt-oss and with the routings that have broken such kernels
(``grouped_proof``), before a layer trusts it.
"""

# Legend: M rows, E experts, N columns out, K columns in.

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from gptoss_kernels.experts.grouped_proof import find_product_fault
from gptoss_kernels.lora import LowRankTerm


def grouped_mm(rows: Tensor, matrices: Tensor, expert_offsets: Tensor) -> Tensor:
    """Return ``rows W_e^T`` by torch's grouped product.

    Args:
        rows: ``[M, K]`` bf16, contiguous, sorted by expert.
        matrices: ``[E, N, K]`` bf16, either of the last two dimensions contiguous.
        expert_offsets: ``[E + 1]`` int32.

    Returns:
        ``[M, N]``; rows past the last expert's hold anything.
    """
    return torch.nn.functional.grouped_mm(rows, matrices.mT, offs=expert_offsets[1:])


def grouped_matmul_at_once(
    rows: Tensor,
    matrices: Tensor,
    expert_offsets: Tensor,
    *,
    token_indices: Tensor | None = None,
    bias: Tensor | None = None,
    low_rank: LowRankTerm | None = None,
) -> Tensor:
    """Return what ``grouped_matmul_reference`` returns, for all experts in one product.

    The host does not have to know the row counts, so nothing waits for the GPU.

    Args:
        rows: ``[M, K]`` or, with ``token_indices``, ``[T, K]``; bf16 on a GPU.
        matrices: ``[E, N, K]``, one of the last two dimensions contiguous.
        expert_offsets: ``[E + 1]`` int32.
        token_indices: ``[M]`` or None.
        bias: ``[E, N]`` or None.
        low_rank: A rank-r term or None.

    Returns:
        ``[M, N]``; rows past ``expert_offsets[E]`` are zero.
    """
    gathered = rows if token_indices is None else rows[token_indices]
    out = grouped_mm(gathered, matrices, expert_offsets)
    row = torch.arange(out.shape[0], device=out.device, dtype=torch.int32)
    if bias is not None:
        expert = torch.bucketize(row, expert_offsets[1:], right=True)
        out += bias.to(out.dtype)[expert.clamp(max=bias.shape[0] - 1)]
    if low_rank is not None:
        # The product wants an inner dimension of whole 16 bytes: zeros fill it up.
        missing = -low_rank.rows.shape[1] % 8
        low, factor = (F.pad(t, (0, missing)) for t in (low_rank.rows, low_rank.factor))
        out.add_(grouped_mm(low, factor.contiguous(), expert_offsets), alpha=low_rank.scaling)
    return torch.where((row < expert_offsets[-1])[:, None], out, 0.0)


@functools.cache
def grouped_mm_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why torch's grouped product cannot be trusted on ``device``, None when it can.

    Args:
        device: A GPU, where it takes bf16; or a CPU, where it is a loop in torch (bf16 and fp32).
        dtype: Of rows and matrices.

    Returns:
        The reason, for a message.
    """
    if device.type not in ("cpu", "cuda"):
        return f"it is proved on GPUs and CPUs, got device {device}"
    if dtype != torch.bfloat16 and (device.type != "cpu" or dtype != torch.float32):
        return f"it needs bfloat16, got {dtype}"
    fault = find_product_fault(grouped_mm, device, dtype)
    return fault and f"torch {torch.__version__}'s grouped_mm failed its proof: {fault}"
