"""torch's own grouped product as an engine, behind a probe.

``torch.nn.functional.grouped_mm`` is CUTLASS on NVIDIA GPUs. Some builds of torch return wrong
numbers for transposed views (pytorch issue 186365), so each device is asked once, on a small
problem whose answer is known, before a layer trusts it.
"""

# Legend: M rows, E experts, N columns out, K columns in.

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from gptoss_kernels.lora import LowRankTerm

_TOLERANCE = 0.02
"""Relative error of one bf16 rounding of the result is 0.004; a wrong product is off by about 1."""


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
    if dtype != torch.bfloat16 and (device.type != "cpu" or dtype != torch.float32):
        return f"it needs bfloat16, got {dtype}"
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((96, 64), generator=generator).to(device, dtype)
    stored = torch.randn((3, 128, 64), generator=generator).to(device, dtype)
    offsets = torch.tensor([0, 16, 16, 96], dtype=torch.int32, device=device)
    expected = torch.cat((rows[:16] @ stored[0].mT, rows[16:] @ stored[2].mT)).float()
    for name, matrices in (("packed", stored), ("transposed", stored.mT.contiguous().mT)):
        actual = grouped_mm(rows, matrices, offsets).float()
        error = float((actual - expected).norm() / expected.norm())
        if not error < _TOLERANCE:
            return f"this torch, {torch.__version__}, multiplies {name} matrices wrongly ({error})"
    return None
