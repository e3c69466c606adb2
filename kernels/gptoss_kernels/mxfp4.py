"""MXFP4: four-bit values in blocks of 32 that share a power-of-two scale, as gpt-oss is released.

A value is a sign, two exponent bits and one mantissa bit (e2m1), so it is one of 0, 0.5, 1, 1.5, 2,
3, 4, 6 or a negative of these; a block's scale is one byte e standing for 2^(e - 127) (E8M0). Two
values share a byte, the low nibble first. A weight of an expert stack is stored with its *input*
axis packed: ``blocks [E, out, in/32, 16]``, ``scales [E, out, in/32]``.

Worked example, one block that starts ``[0.5, -3.0, ...]`` with scale byte 128 (that is 2^1): the
stored values are 0.25 and -1.5, whose nearest codes are 0.0 or 0.5 (a tie, the even code 0.0 wins)
and -1.5; the first byte is ``0x0 | 0xB << 4 = 0xB0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

MXFP4_BLOCK = 32
"""Values that share one scale."""

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_SCALE_BIAS = 127
_LARGEST_EXPONENT = 2  # of 6.0 = 1.5 * 2^2
_NAN_SCALE = 255  # E8M0 has no infinity; 255 is NaN


@dataclass(frozen=True)
class Mxfp4Weight:
    """A stack of expert weights in MXFP4, as stored in a released checkpoint.

    Attributes:
        blocks: ``[E, out, in/32, 16]`` uint8, two values a byte, low nibble first.
        scales: ``[E, out, in/32]`` uint8, E8M0.
    """

    blocks: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        """Refuse tensors that cannot be one MXFP4 weight."""
        blocks, scales = self.blocks, self.scales
        if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
            raise ValueError(f"MXFP4 needs uint8, got {blocks.dtype} blocks, {scales.dtype} scales")
        if blocks.shape[-1] != MXFP4_BLOCK // 2 or blocks.shape[:-1] != scales.shape:
            raise ValueError(
                f"MXFP4 needs blocks [..., n, 16] and scales [..., n], got {tuple(blocks.shape)} "
                f"and {tuple(scales.shape)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The packed weight's logical shape ``(E, out, in)``."""
        return (*self.scales.shape[:-1], self.scales.shape[-1] * MXFP4_BLOCK)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.blocks.nbytes + self.scales.nbytes


def dequantize(blocks: Tensor, scales: Tensor, *, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return ``e2m1(nibble) * 2^(scale - 127)``, two values per table look-up.

    The values are those of ``dequantize_reference`` bit for bit; this one reads a table of 256 byte
    values instead of splitting nibbles first, which is several times faster in plain torch.

    Args:
        blocks: ``[..., n, 16]`` uint8, low nibble first.
        scales: ``[..., n]`` uint8.
        dtype: A floating dtype.

    Returns:
        ``[..., n * 32]`` in ``dtype``; NaN where a scale byte is 255.
    """
    pairs = _pair_table(blocks.device)[blocks.int()].flatten(-2)
    return pairs.mul_(_scale_table(blocks.device)[scales.int()].unsqueeze(-1)).flatten(-2).to(dtype)


def _pair_table(device: torch.device) -> Tensor:
    """Return the two values of every byte, ``[256, 2]`` fp32."""
    signed = torch.tensor((*_VALUES, *(-value for value in _VALUES)), device=device)
    byte = torch.arange(256, device=device)
    return torch.stack((signed[byte & 0xF], signed[byte >> 4]), dim=-1)


def _scale_table(device: torch.device) -> Tensor:
    """Return the value of every scale byte, ``[256]`` fp32; byte 255 is NaN."""
    bits = torch.arange(256, device=device, dtype=torch.int32) << 23
    bits[0] = 1 << 22  # 2^-127 is subnormal in fp32
    table = bits.view(torch.float32)
    table[_NAN_SCALE] = float("nan")
    return table


def dequantize_reference(
    blocks: Tensor, scales: Tensor, *, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Return ``e2m1(nibble) * 2^(scale - 127)``, exact wherever ``dtype`` can hold the value.

    Args:
        blocks: ``[..., n, 16]`` uint8, low nibble first.
        scales: ``[..., n]`` uint8.
        dtype: A floating dtype. fp32 and bf16 hold every product but the smallest subnormals.

    Returns:
        ``[..., n * 32]`` in ``dtype``; NaN where a scale byte is 255.

    See OCP Microscaling Formats v1.0, sections 5.2 and 5.3.
    """
    signed = (*_VALUES, *(-value for value in _VALUES))
    table = torch.tensor(signed, dtype=torch.float32, device=blocks.device)
    nibbles = torch.stack((blocks & 0xF, blocks >> 4), dim=-1).flatten(-2)
    values = table[nibbles.int()]
    exponent = scales.to(torch.int32) - _SCALE_BIAS
    values = torch.ldexp(values, exponent.unsqueeze(-1))
    values = values.masked_fill((scales == _NAN_SCALE).unsqueeze(-1), float("nan"))
    return values.flatten(-2).to(dtype)


def quantize_reference(weight: Tensor) -> Mxfp4Weight:
    """Return the MXFP4 weight nearest to ``weight`` under the OCP scale rule.

    The scale of a block is ``2^(floor(log2(amax)) - 2)`` and values round to the nearest code, ties
    to the even code; a block's largest values may saturate at 6 times the scale.

    Args:
        weight: ``[..., in]``, floating, ``in`` divisible by 32.

    Returns:
        Blocks ``[..., in/32, 16]`` and scales ``[..., in/32]``.

    Raises:
        ValueError: The last dimension is not divisible by 32, or a value is not finite.

    See OCP Microscaling Formats v1.0, section 6.3.
    """
    if weight.shape[-1] % MXFP4_BLOCK:
        raise ValueError(f"MXFP4 needs a last dimension divisible by 32, got {weight.shape[-1]}")
    if not torch.isfinite(weight).all():
        raise ValueError("MXFP4 cannot hold NaN or infinity; the weight contains such values")
    grouped = weight.float().unflatten(-1, (-1, MXFP4_BLOCK))
    amax = grouped.abs().amax(-1)
    _, exponent = torch.frexp(amax)  # amax = m * 2^exponent with m in [0.5, 1)
    exponent = torch.where(amax > 0, exponent - 1 - _LARGEST_EXPONENT, -_SCALE_BIAS)
    exponent = exponent.clamp(-_SCALE_BIAS, _NAN_SCALE - 1 - _SCALE_BIAS)
    codes = _nearest_codes(torch.ldexp(grouped, -exponent.unsqueeze(-1)))
    blocks = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return Mxfp4Weight(blocks.contiguous(), (exponent + _SCALE_BIAS).to(torch.uint8))


def _nearest_codes(scaled: Tensor) -> Tensor:
    """Return the four-bit codes nearest to ``scaled``, ties to the even code, as uint8."""
    magnitude = scaled.abs()
    # Between codes c and c + 1 lies a midpoint; it belongs to whichever of the two is even.
    code = torch.zeros_like(magnitude, dtype=torch.uint8)
    for low, (left, right) in enumerate(pairwise(_VALUES)):
        midpoint = (left + right) / 2
        above = magnitude > midpoint if low % 2 == 0 else magnitude >= midpoint
        code += above.to(torch.uint8)
    return code | (torch.signbit(scaled).to(torch.uint8) << 3)
