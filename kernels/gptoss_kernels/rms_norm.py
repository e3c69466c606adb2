"""RMSNorm as gpt-oss defines it, keeping its input and one number per row for backward.

gpt-oss multiplies by the weight in fp32 and rounds once; Llama rounds before the weight, and a
kernel written for Llama is off by an ulp in half of all values. Differentiated by autograd step by
step, the formula keeps three fp32 copies of the hidden states (34 KB a token and norm at 2,880);
here the input is kept in its own dtype, which the residual stream holds anyway, and the reciprocal
of the norm.

Rejected: Liger's RMSNorm, whose ``gemma`` casting with offset 0 is the same formula: a dependency
for one row-wise kernel, behind a class patch.

N rows, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptoss_kernels.backend import Backend, launch, on_device, require_backend, require_triton

__all__ = ["rms_norm", "rms_norm_reference"]


def rms_norm(hidden: Tensor, weight: Tensor, eps: float, *, backend: Backend = "torch") -> Tensor:
    """Return ``weight * hidden / sqrt(mean(hidden^2) + eps)``, computed in fp32, rounded once.

    Args:
        hidden: ``[..., H]``, fp64, fp32, fp16 or bf16.
        weight: ``[H]``, any floating dtype.
        eps: Added to the mean square.
        backend: "triton" needs a GPU (or its interpreter) and no fp64.

    Returns:
        As ``hidden``, shape and dtype. The torch backend equals transformers' module bit by bit.

    Raises:
        ValueError: The weight does not fit, or the backend is unknown.

    See ``rms_norm_reference``; Zhang and Sennrich, arXiv 1910.07467.
    """
    if weight.shape != hidden.shape[-1:]:
        raise ValueError(
            f"rms_norm needs a weight of shape {tuple(hidden.shape[-1:])}, got "
            f"{tuple(weight.shape)}"
        )
    require_backend(backend)
    if backend == "triton":
        require_triton("rms_norm", hidden, weight)
    return _RmsNorm.apply(hidden, weight, eps, backend)


def rms_norm_reference(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return what ``rms_norm`` returns, step by step, under plain autograd."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * normed).to(hidden.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float, backend: Backend) -> Tensor:
        """Normalise, and keep the input and the reciprocal root mean square."""
        if backend == "triton":
            normed, reciprocal = _forward_triton(hidden, weight, eps)
        else:
            wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
            reciprocal = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
            normed = (weight * (wide * reciprocal)).to(hidden.dtype)
        ctx.save_for_backward(hidden, weight, reciprocal)
        ctx.backend = backend
        return normed

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_normed: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return ``r * (g - x r * mean(g x r))`` with ``g = weight * dY``, and the weight's."""
        hidden, weight, reciprocal = ctx.saved_tensors
        grad_hidden = grad_weight = None
        if ctx.needs_input_grad[0] and ctx.backend == "triton":
            grad_hidden = _backward_triton(grad_normed, hidden, weight, reciprocal)
        elif ctx.needs_input_grad[0]:
            unit = hidden.to(reciprocal.dtype) * reciprocal
            grad = grad_normed * weight.to(reciprocal.dtype)
            grad_hidden = grad - unit * (grad * unit).mean(-1, keepdim=True)
            grad_hidden = grad_hidden.mul_(reciprocal).to(hidden.dtype)
        if ctx.needs_input_grad[1]:
            unit = hidden.to(reciprocal.dtype) * reciprocal
            grad_weight = (grad_normed * unit).flatten(0, -2).sum(0).to(weight.dtype)
        return grad_hidden, grad_weight, None, None


def _forward_triton(hidden: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from gptoss_kernels._triton._rms_norm import _rms_norm_forward_kernel

    hidden = hidden.contiguous()
    rows, size = hidden.numel() // hidden.shape[-1], hidden.shape[-1]
    normed = torch.empty_like(hidden)
    shape = (*hidden.shape[:-1], 1)
    reciprocal = torch.empty(shape, dtype=torch.float32, device=hidden.device)
    if rows:
        block = 1 << (size - 1).bit_length()
        with on_device(hidden):
            launch(
                _rms_norm_forward_kernel,
                (rows,),
                hidden,
                weight,
                normed,
                reciprocal,
                eps,
                size,
                BLOCK_H=block,
                num_warps=_warps(block),
            )
    return normed, reciprocal


def _backward_triton(
    grad_normed: Tensor, hidden: Tensor, weight: Tensor, reciprocal: Tensor
) -> Tensor:
    from gptoss_kernels._triton._rms_norm import _rms_norm_backward_kernel

    hidden, grad_normed = hidden.contiguous(), grad_normed.contiguous()
    rows, size = hidden.numel() // hidden.shape[-1], hidden.shape[-1]
    grad_hidden = torch.empty_like(hidden)
    if rows:
        block = 1 << (size - 1).bit_length()
        with on_device(hidden):
            launch(
                _rms_norm_backward_kernel,
                (rows,),
                grad_normed,
                hidden,
                weight,
                reciprocal,
                grad_hidden,
                size,
                BLOCK_H=block,
                num_warps=_warps(block),
            )
    return grad_hidden


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 8)
