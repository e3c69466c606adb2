"""Linear layers whose frozen weight is held in fewer bits, and decoded by rows when it is used.

``y = x @ W.T + b``, where ``W`` is what a packed form decodes to: forward and backward read the
same decoded rows, so the gradient is that of the decoded weight, and no rounding of activations
takes part. Nothing is saved for the backward pass but the packed weight itself; the decoded rows of
one tile are all that exists beside it (47 MB for 8,192 rows of gpt-oss in bf16).

``Int8Weight`` is our own form: one byte a value and a bf16 scale for each 64 of them along a row,
8.25 bits. Blocks and not rows, because a row's few outliers would take the steps of all its other
values (``kernels/bench/precision`` measures both). Rejected: LLM.int8 of bitsandbytes, which rounds
the activations too, and whose backward pass multiplies by another weight than its forward pass.

N rows, H inputs, V outputs (of ``lm_head`` the vocabulary).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gptoss_kernels.backend import without_autocast

__all__ = [
    "INT8_BLOCK",
    "TILE_ROWS",
    "Int8Weight",
    "PackedWeight",
    "packed_linear",
    "quantize_int8",
]

INT8_BLOCK = 64
"""Values of a row that share a scale; where they are no multiple of it, the largest part of it that
divides them: 32 of a row of 96."""
_LEAST_BLOCK = 16
TILE_ROWS = 8192
"""Rows that are decoded at a time: one tile for the projections of attention, 25 for lm_head."""
_LARGEST = 127


@runtime_checkable
class PackedWeight(Protocol):
    """A frozen ``[V, H]`` weight that can say its rows.

    Attributes:
        shape: ``(V, H)``.
        dtype: Of the decoded rows.
        device: Where they come.
    """

    @property
    def shape(self) -> torch.Size: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def rows(self, first: int, stop: int) -> Tensor:
        """Return the decoded rows ``[stop - first, H]``; ``first`` is a multiple of a tile."""
        ...


@dataclass(frozen=True)
class Int8Weight:
    """``W[v, h] = values[v, h] * scales[v, h // 64]``, rounded once to ``dtype``.

    A row of 128 inputs has two scales; one of zeros has the scales 0::

        Int8Weight(values=[[127, -3, ...]], scales=[[0.02, 0.0]], dtype=torch.bfloat16)
        # decodes to [[2.54, -0.06, ..., 0, ...]]

    Attributes:
        values: ``[V, H]`` int8 in [-127, 127].
        scales: ``[V, H / 64]`` bf16, not negative (more of them where 64 does not divide H).
        dtype: Of the decoded rows; bf16, fp32 or fp64.
    """

    values: Tensor
    scales: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """``(V, H)``."""
        return self.values.shape

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.values.nbytes + self.scales.nbytes

    def rows(self, first: int, stop: int) -> Tensor:
        """Return the decoded rows ``[stop - first, H]`` in ``dtype``."""
        values, scales = self.values[first:stop], self.scales[first:stop].to(self.dtype)
        blocks = values.view(values.shape[0], scales.shape[1], -1)
        # Integers up to 127 are exact in every dtype, so the product is the only rounding.
        return torch.mul(blocks, scales.unsqueeze(2)).view(values.shape)


def quantize_int8(weight: Tensor) -> Int8Weight:
    """Return ``weight`` rounded to 255 steps per block of 64 inputs, the nearest by value.

    The scale is the block's largest magnitude / 127, rounded to bf16 before the values are divided
    by it: what decodes is the nearest that the form can say for that scale. At most half a step is
    lost, and a quarter more at the block's largest value where bf16 rounded the scale down.

    Args:
        weight: ``[V, H]``, bf16, fp32 or fp64; H a multiple of 16.

    Returns:
        The packed weight, which decodes to the dtype of ``weight``.

    Raises:
        ValueError: Another shape or dtype, or a value that is not finite.
    """
    if weight.ndim != 2 or weight.shape[1] % _LEAST_BLOCK or not weight.is_floating_point():
        raise ValueError(
            f"quantize_int8 needs a floating weight [V, H] with H a multiple of {_LEAST_BLOCK}, "
            f"got {tuple(weight.shape)} of {weight.dtype}; leave this one in bf16"
        )
    values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    block = math.gcd(weight.shape[1], INT8_BLOCK)
    blocks = weight.shape[1] // block
    scales = torch.empty(weight.shape[0], blocks, dtype=torch.bfloat16, device=weight.device)
    for first, stop in tiles(weight.shape[0]):
        wide = weight[first:stop].to(torch.promote_types(weight.dtype, torch.float32))
        wide = wide.view(-1, blocks, block)
        scale = (wide.abs().amax(dim=2, keepdim=True) / _LARGEST).to(torch.bfloat16)
        steps = wide / scale.to(wide.dtype).masked_fill(scale == 0, 1.0)
        if not bool(torch.isfinite(steps).all()):
            raise ValueError(
                f"quantize_int8 needs finite values, got NaN or infinity in the rows {first} to "
                f"{stop - 1}; the weight is damaged"
            )
        values[first:stop] = steps.round_().clamp_(-_LARGEST, _LARGEST).view(-1, weight.shape[1])
        scales[first:stop] = scale.squeeze(2)
    return Int8Weight(values, scales, weight.dtype)


def tiles(rows: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of every tile and the one after its last."""
    for first in range(0, rows, TILE_ROWS):
        yield first, min(first + TILE_ROWS, rows)


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ W.T + b`` for the decoded ``W``, of which one tile exists at a time.

    Args:
        x: ``[..., H]``, any floating dtype; computed in that of ``weight``, as under autocast.
        weight: Frozen.
        bias: ``[V]`` frozen, or none.

    Returns:
        ``[..., V]`` in the dtype of ``weight``; the gradient of ``x`` is ``grad @ W``.

    Raises:
        ValueError: The inner sizes differ, or ``bias`` asks for a gradient.
    """
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"packed_linear needs x [..., {weight.shape[1]}] for a weight {tuple(weight.shape)}, "
            f"got {tuple(x.shape)}"
        )
    if bias is not None and bias.requires_grad:
        raise ValueError("packed_linear has no gradient for bias; freeze it")
    return _PackedLinear.apply(x, weight, bias)


class _PackedLinear(torch.autograd.Function):
    """Keeps no tensor: the packed weight is a parameter of its module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        with without_autocast(x.device):
            wide = x.to(weight.dtype)
            if weight.shape[0] <= TILE_ROWS:  # as nn.Linear computes it, to the bit
                return functional.linear(wide, weight.rows(0, weight.shape[0]), bias)
            rows = wide.reshape(-1, wide.shape[-1])
            out = write_products(rows, weight, rows.new_empty(rows.shape[0], weight.shape[0]))
            out = out if bias is None else out.add_(bias)
            return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        with without_autocast(grad.device):
            rows = grad.reshape(-1, grad.shape[-1]).to(ctx.weight.dtype)
            found = sum_of_products(rows, ctx.weight)
        return found.view(*grad.shape[:-1], -1).to(ctx.dtype), None, None


def write_products(rows: Tensor, weight: PackedWeight, out: Tensor) -> Tensor:
    """Write ``rows @ W.T`` into ``out`` ``[N, V]``, tile after tile, and return it."""
    for first, stop in tiles(weight.shape[0]):
        torch.mm(rows, weight.rows(first, stop).T, out=out[:, first:stop])
    return out


def sum_of_products(grad: Tensor, weight: PackedWeight) -> Tensor:
    """Return ``grad @ W`` ``[N, H]`` for ``grad`` ``[N, V]``.

    Every tile's product is rounded to the dtype of ``weight`` and the sum over tiles is fp32 (fp64
    for fp64), rounded once more at its end.
    """
    if weight.shape[0] <= TILE_ROWS:
        return torch.mm(grad, weight.rows(0, weight.shape[0]))
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = grad.new_zeros(grad.shape[0], weight.shape[1], dtype=wide)
    for first, stop in tiles(weight.shape[0]):
        total += torch.mm(grad[:, first:stop], weight.rows(first, stop))
    return total.to(weight.dtype)
