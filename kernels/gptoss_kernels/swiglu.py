"""The clamped, interleaved SwiGLU of gpt-oss and its gradient.

The gate is clamped from above only, the up half on both sides, and ``up + 1`` multiplies. Where a
clamp is active its gradient is zero, as torch's ``clamp`` has it. Rejected: saving the activation
for backward; it is cheaper to compute it again from the pre-activation, which is saved anyway.
"""

# Legend: M rows, I intermediate. gate_up [M, 2I] holds g0, u0, g1, u1, ...

from __future__ import annotations

import torch
from torch import Tensor


def swiglu_reference(gate_up: Tensor, *, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """Return ``(up + 1) * gate * sigmoid(alpha * gate)`` with both halves clamped first.

    Args:
        gate_up: ``[..., 2*I]`` floating, gate and up interleaved.
        alpha: Slope of the sigmoid.
        limit: Bound of the clamps, in activation units.

    Returns:
        ``[..., I]`` in the dtype of ``gate_up``; computed in fp32 (fp64 for fp64).
    """
    gate, up = _halves(gate_up)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return ((up + 1) * gate * torch.sigmoid(alpha * gate)).to(gate_up.dtype)


def swiglu_backward_reference(
    gate_up: Tensor, d_activation: Tensor, *, alpha: float = 1.702, limit: float = 7.0
) -> Tensor:
    """Return the gradient of ``swiglu`` with respect to ``gate_up``.

    Args:
        gate_up: ``[..., 2*I]``, the pre-activation.
        d_activation: ``[..., I]``, the gradient of the activation.
        alpha: Slope of the sigmoid.
        limit: Bound of the clamps.

    Returns:
        ``[..., 2*I]`` in the dtype of ``gate_up``, zero where a clamp is active.
    """
    raw_gate, raw_up = _halves(gate_up)
    gate, up = raw_gate.clamp(max=limit), raw_up.clamp(-limit, limit)
    slope = torch.sigmoid(alpha * gate)
    d_activation = d_activation.to(gate.dtype)
    d_gate = d_activation * (up + 1) * slope * (1 + alpha * gate * (1 - slope))
    d_up = d_activation * gate * slope
    # A value exactly on the bound passes its gradient, as in torch's clamp.
    d_gate = torch.where(raw_gate <= limit, d_gate, 0)
    d_up = torch.where(raw_up.abs() <= limit, d_up, 0)
    return torch.stack((d_gate, d_up), dim=-1).flatten(-2).to(gate_up.dtype)


def _halves(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """Return gate and up in the dtype the formula is computed in."""
    wide = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32))
    return wide[..., 0::2], wide[..., 1::2]
