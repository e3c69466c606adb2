"""RMSNorm as gpt-oss defines it, keeping its input and one number per row for backward.

gpt-oss multiplies by the weight in fp32 and rounds once; Llama rounds before the weight, and a
kernel written for Llama is off by an ulp in half of all values. Differentiated by autograd step by
step, the formula keeps three fp32 copies of the hidden states (34 KB a token and norm at 2,880);
here the input is kept in its own dtype, which the residual stream holds anyway, and the reciprocal
of the norm. Both directions go through the rows in pieces: all at once, the fp32 copies of backward
are 45 KB a token, 5.6 GiB at 131,072 tokens and more than a layer holds besides.

Only in torch: on a GPU the model uses Liger's kernel, which computes and keeps the same, and warns
where it cannot. A kernel of ours beside it was the alternative: one more to tune and to prove.

N rows, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["rms_norm", "rms_norm_reference"]

ROWS_AT_A_TIME = 4096
"""Rows whose fp32 copies exist at a time."""


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return ``weight * hidden / sqrt(mean(hidden^2) + eps)``, computed in fp32, rounded once.

    Args:
        hidden: ``[..., H]``, fp64, fp32, fp16 or bf16.
        weight: ``[H]``, any floating dtype.
        eps: Added to the mean square.

    Returns:
        As ``hidden``, shape and dtype; equal to transformers' module bit by bit.

    Raises:
        ValueError: The weight does not fit.

    See ``rms_norm_reference``; Zhang and Sennrich, arXiv 1910.07467.
    """
    if weight.shape != hidden.shape[-1:]:
        raise ValueError(
            f"rms_norm needs a weight of shape {tuple(hidden.shape[-1:])}, got "
            f"{tuple(weight.shape)}"
        )
    return _RmsNorm.apply(hidden, weight, eps)


def rms_norm_reference(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return what ``rms_norm`` returns, step by step, under plain autograd."""
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (weight * normed).to(hidden.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise, and keep the input and the reciprocal root mean square."""
        wide_dtype = torch.promote_types(hidden.dtype, torch.float32)
        out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        reciprocal = torch.empty((*hidden.shape[:-1], 1), dtype=wide_dtype, device=hidden.device)
        for rows, into, root in _pieces(hidden, out, reciprocal):
            wide = rows.to(wide_dtype)
            root.copy_(torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps))
            into.copy_(weight * (wide * root))
        ctx.save_for_backward(hidden, weight, reciprocal)
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_normed: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return ``r * (g - x r * mean(g x r))`` with ``g = weight * dY``, and the weight's."""
        hidden, weight, reciprocal = ctx.saved_tensors
        grad_hidden = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight, dtype=reciprocal.dtype)
        into = hidden if grad_hidden is None else grad_hidden  # or only read, for its shape
        for rows, given, target, root in _pieces(hidden, grad_normed, into, reciprocal):
            unit = rows.to(reciprocal.dtype) * root
            if grad_hidden is not None:
                grad = given * weight.to(reciprocal.dtype)
                target.copy_((grad - unit * (grad * unit).mean(-1, keepdim=True)).mul_(root))
            if grad_weight is not None:
                grad_weight += (given * unit).sum(0)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield views ``[rows, H]`` of all tensors ``[..., H]`` together, some rows at a time."""
    flat = (tensor.reshape(-1, tensor.shape[-1]).split(ROWS_AT_A_TIME) for tensor in tensors)
    yield from zip(*flat, strict=True)
