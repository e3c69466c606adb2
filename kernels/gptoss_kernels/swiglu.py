"""The clamped, interleaved SwiGLU of gpt-oss and its gradient.

The gate is clamped from above only, the up half on both sides, and ``up + 1`` multiplies. Where a
clamp is active its gradient is zero, as torch's ``clamp`` has it. Rejected: saving the activation
for backward; it is cheaper to compute it again from the pre-activation, which is saved anyway.
"""

# Legend: M rows, I intermediate. gate_up [M, 2I] holds g0, u0, g1, u1, ...

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptoss_kernels.backend import Backend, launch, on_device, require_backend, require_triton

_BLOCK = 1024
"""Activations a program computes at a time."""


def swiglu(
    gate_up: Tensor, *, alpha: float = 1.702, limit: float = 7.0, backend: Backend = "torch"
) -> Tensor:
    """Return ``(up + 1) * gate * sigmoid(alpha * gate)`` with both halves clamped first.

    Gate and up are interleaved, ``[g0, u0, g1, u1, ...]``, as in the released weights: a tensor
    stored as ``[gate | up]`` passes every check here and gives a wrong result. The gate is clamped
    from above only.

    Args:
        gate_up: ``[..., 2*I]`` floating, contiguous.
        alpha: Slope of the sigmoid.
        limit: Bound of the clamps, in activation units.
        backend: "torch" or "triton".

    Returns:
        ``[..., I]`` in the dtype of ``gate_up``; computed in fp32. Differentiable.

    Raises:
        ValueError: The last dimension is odd, the tensor is not contiguous, or the backend cannot
            run here.

    See ``swiglu_reference``; openai/gpt-oss, gpt_oss/torch/model.py.
    """
    require_backend(backend)
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2 or not gate_up.is_floating_point():
        raise ValueError(
            f"swiglu needs floating [..., 2*I] with gate and up interleaved, got {gate_up.dtype} "
            f"{tuple(gate_up.shape)}"
        )
    if not gate_up.is_contiguous():
        raise ValueError(
            f"swiglu needs a contiguous tensor, got strides {gate_up.stride()}; call .contiguous()"
        )
    if backend == "triton":
        require_triton("swiglu", gate_up)
    return _Swiglu.apply(gate_up, alpha, limit, backend)


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


class _Swiglu(torch.autograd.Function):
    """``swiglu`` as one node that keeps its input only."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, alpha: float, limit: float, backend: Backend) -> Tensor:
        """Compute the activation."""
        ctx.save_for_backward(gate_up)
        ctx.options = (alpha, limit, backend)
        if backend == "torch":
            return swiglu_reference(gate_up, alpha=alpha, limit=limit)
        return launch_swiglu(gate_up, alpha, limit)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_activation: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Compute the gradient from the saved input."""
        (gate_up,) = ctx.saved_tensors
        alpha, limit, backend = ctx.options
        if backend == "torch":
            gradient = swiglu_backward_reference(gate_up, d_activation, alpha=alpha, limit=limit)
        else:
            flat = gate_up.view(-1, gate_up.shape[-1])
            d_activation = d_activation.contiguous().view(-1, gate_up.shape[-1] // 2)
            gradient = launch_swiglu_backward(flat, d_activation, alpha, limit).view_as(gate_up)
        return gradient, None, None, None


def launch_swiglu(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """Return the activation of a contiguous ``[..., 2*I]`` tensor."""
    from gptoss_kernels._triton import _swiglu

    out = gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))
    if out.numel():
        with on_device(gate_up):
            launch(
                _swiglu._swiglu_forward_kernel,
                (-(-out.numel() // _BLOCK),),
                gate_up,
                out,
                out.numel(),
                ALPHA=alpha,
                LIMIT=limit,
                BLOCK=_BLOCK,
            )
    return out


class GatedGradient(NamedTuple):
    """What backward needs of an activation whose row is weighted by the router.

    Attributes:
        gate_up: ``[M, 2I]``, the gradient of the pre-activation.
        activation: ``[M, I]``, the activation again, in the memory of the gradient that came in.
        share: ``[M]`` fp32, ``<d_activation, activation>`` of each row.
    """

    gate_up: Tensor
    activation: Tensor
    share: Tensor


def launch_swiglu_backward(
    gate_up: Tensor, d_activation: Tensor, alpha: float, limit: float
) -> Tensor:
    """Return the gradient of a contiguous ``[M, 2I]`` pre-activation."""
    rows = torch.full((1,), gate_up.shape[0], dtype=torch.int32, device=gate_up.device)
    d_gate_up = torch.empty_like(gate_up)
    _launch_backward(gate_up, d_activation, None, d_gate_up, None, None, rows, alpha, limit)
    return d_gate_up


def launch_gated_swiglu_backward(
    gate_up: Tensor,
    d_activation: Tensor,
    gates: Tensor,
    rows: Tensor,
    alpha: float,
    limit: float,
    *,
    overwrite: bool = False,
) -> GatedGradient:
    """Return the gradient of ``gates * swiglu(gate_up)`` for a gradient of the unweighted row.

    Args:
        gate_up: ``[M, 2I]``.
        d_activation: ``[M, I]``, not yet multiplied by ``gates``; overwritten, since 23 KB a token
            are a third of what this step holds.
        gates: ``[M]``, the routing weight of each row.
        rows: ``[1]`` int32 on the device, the rows in use; the rest stays unwritten.
        alpha: Slope of the sigmoid.
        limit: Bound of the clamps.
        overwrite: Write the gradient over ``gate_up`` as well, 46 KB a token, where nobody reads it
            afterwards.

    Returns:
        The ``GatedGradient``.
    """
    gradient = GatedGradient(
        gate_up if overwrite else torch.empty_like(gate_up),
        d_activation,
        torch.empty(gate_up.shape[:1], dtype=torch.float32, device=gate_up.device),
    )
    _launch_backward(gate_up, d_activation, gates, *gradient, rows, alpha, limit)
    return gradient


def _launch_backward(
    gate_up: Tensor,
    d_activation: Tensor,
    gates: Tensor | None,
    d_gate_up: Tensor,
    activation: Tensor | None,
    share: Tensor | None,
    rows: Tensor,
    alpha: float,
    limit: float,
) -> None:
    from gptoss_kernels._triton import _swiglu

    if not d_activation.numel():
        return
    with on_device(gate_up):
        launch(
            _swiglu._swiglu_backward_kernel,
            (gate_up.shape[0],),
            gate_up,
            d_activation,
            gates,
            d_gate_up,
            activation,
            share,
            rows,
            COLUMNS=d_activation.shape[1],
            ALPHA=alpha,
            LIMIT=limit,
            GATED=gates is not None,
            BLOCK=_BLOCK,
        )


def _halves(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """Return gate and up in the dtype the formula is computed in."""
    wide = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32))
    return wide[..., 0::2], wide[..., 1::2]
