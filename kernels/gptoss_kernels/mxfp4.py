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
from typing import Literal

import torch
from torch import Tensor

from gptoss_kernels.backend import Backend, launch, on_device, require_backend, require_triton

MXFP4_BLOCK = 32
"""Values that share one scale."""

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_SCALE_BIAS = 127
_LARGEST_EXPONENT = 2  # of 6.0 = 1.5 * 2^2
_NAN_SCALE = 255  # E8M0 has no infinity; 255 is NaN
_DECODED_PER_PROGRAM = 128  # blocks, 4,096 values
_QUANTIZED_PER_PROGRAM = 256  # blocks; with fewer, some architectures spill a few bytes


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


def dequantize(
    blocks: Tensor,
    scales: Tensor,
    *,
    dtype: torch.dtype = torch.bfloat16,
    out: Tensor | None = None,
    backend: Backend = "torch",
) -> Tensor:
    """Return ``e2m1(nibble) * 2^(scale - 127)``; both backends give the bits of the reference.

    The torch backend reads two values per look-up from a table of 256 bytes instead of splitting
    nibbles first, which is several times faster.

    Args:
        blocks: ``[..., n, 16]`` uint8, contiguous, low nibble first.
        scales: ``[..., n]`` uint8, contiguous.
        dtype: A floating dtype; that of ``out`` where there is one.
        out: ``[..., n * 32]``, contiguous: a scratch to decode into.
        backend: "torch" or "triton".

    Returns:
        ``[..., n * 32]`` in ``dtype``, ``out`` if given; NaN where a scale byte is 255.

    Raises:
        ValueError: Shapes, dtypes or layouts that do not fit, or a backend that cannot run.

    See ``dequantize_reference``.
    """
    require_backend(backend)
    packed = Mxfp4Weight(blocks, scales)
    if out is not None and (out.shape != packed.shape or not out.is_contiguous()):
        raise ValueError(
            f"out needs to be contiguous with shape {tuple(packed.shape)}, got {tuple(out.shape)} "
            f"with strides {out.stride()}"
        )
    if backend == "torch":
        pairs = _pair_table(blocks.device)[blocks.int()].flatten(-2)
        pairs *= _scale_table(blocks.device)[scales.int()].unsqueeze(-1)
        values = pairs.flatten(-2)
        return values.to(dtype) if out is None else out.copy_(values)
    if not blocks.is_contiguous() or not scales.is_contiguous():
        raise ValueError("blocks and scales need to be contiguous; call .contiguous()")
    if out is None:
        out = torch.empty(packed.shape, dtype=dtype, device=blocks.device)
    # The bits are right in every dtype, even where the interpreter's arithmetic is not.
    require_triton("dequantize", blocks, scales)
    return launch_dequantize(blocks, scales, out)


def quantize(weight: Tensor, *, backend: Backend = "torch") -> Mxfp4Weight:
    """Return the MXFP4 weight nearest to ``weight`` under the OCP scale rule.

    Both backends give the bits of ``quantize_reference``, which says what the rule is.

    Args:
        weight: ``[..., in]``, bf16, fp16 or fp32 (torch: any floating), ``in`` divisible by 32.
        backend: "torch" or "triton".

    Returns:
        Blocks ``[..., in/32, 16]`` and scales ``[..., in/32]``.

    Raises:
        ValueError: The last dimension is not divisible by 32, a value is not finite, or the backend
            cannot run.
    """
    require_backend(backend)
    if backend == "torch":
        return quantize_reference(weight)
    require_triton("quantize", weight)
    _check_quantizable(weight)
    return _launch_quantize(weight.contiguous())


def launch_dequantize(blocks: Tensor, scales: Tensor, out: Tensor) -> Tensor:
    """Return ``dequantize`` into ``out`` by its kernel; the inputs have been checked."""
    from gptoss_kernels._triton import _mxfp4

    count = scales.numel()
    if count:
        with on_device(blocks):
            launch(
                _mxfp4._dequantize_kernel,
                (-(-count // _DECODED_PER_PROGRAM),),
                blocks,
                scales,
                out,
                count,
                BLOCK=_DECODED_PER_PROGRAM,
            )
    return out


def _launch_quantize(weight: Tensor) -> Mxfp4Weight:
    from gptoss_kernels._triton import _mxfp4

    shape = (*weight.shape[:-1], weight.shape[-1] // MXFP4_BLOCK)
    blocks = torch.empty((*shape, MXFP4_BLOCK // 2), dtype=torch.uint8, device=weight.device)
    scales = torch.empty(shape, dtype=torch.uint8, device=weight.device)
    count = scales.numel()
    if count:
        with on_device(weight):
            launch(
                _mxfp4._quantize_kernel,
                (-(-count // _QUANTIZED_PER_PROGRAM),),
                weight,
                blocks,
                scales,
                count,
                BLOCK=_QUANTIZED_PER_PROGRAM,
            )
    return Mxfp4Weight(blocks, scales)


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


def quantize_reference(
    weight: Tensor, *, scale_rule: Literal["ocp", "search"] = "ocp"
) -> Mxfp4Weight:
    """Return the MXFP4 weight nearest to ``weight`` under a rule for the scales.

    Under ``"ocp"`` the scale of a block is ``2^(floor(log2(amax)) - 2)``; its largest values may
    saturate at 6 times the scale. ``"search"`` takes, of that scale, its double and its half, the
    one with the least squared error (the first of equals). Values round to the nearest code, ties
    to the even code. Merge-aware training rounds under ``"ocp"``.

    Args:
        weight: ``[..., in]``, floating, ``in`` divisible by 32.
        scale_rule: How a block's scale is chosen.

    Returns:
        Blocks ``[..., in/32, 16]`` and scales ``[..., in/32]``.

    Raises:
        ValueError: The last dimension is not divisible by 32, or a value is not finite.

    See OCP Microscaling Formats v1.0, section 6.3.
    """
    _check_quantizable(weight)
    grouped = weight.float().unflatten(-1, (-1, MXFP4_BLOCK))
    amax = grouped.abs().amax(-1)
    _, exponent = torch.frexp(amax)  # amax = m * 2^exponent with m in [0.5, 1)
    exponent = torch.where(amax > 0, exponent - 1 - _LARGEST_EXPONENT, -_SCALE_BIAS)
    exponent = exponent.clamp(-_SCALE_BIAS, _NAN_SCALE - 1 - _SCALE_BIAS)
    if scale_rule == "search":
        exponent = _least_error_exponent(grouped, exponent)
    codes = _nearest_codes(torch.ldexp(grouped, -exponent.unsqueeze(-1)))
    blocks = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return Mxfp4Weight(blocks.contiguous(), (exponent + _SCALE_BIAS).to(torch.uint8))


def _least_error_exponent(grouped: Tensor, exponent: Tensor) -> Tensor:
    """Return, of ``exponent``, one more and one less, each block's with the least squared error.

    Args:
        grouped: ``[..., n, 32]`` fp32.
        exponent: ``[..., n]`` int32, the OCP rule's.
    """
    magnitude = grouped.abs()
    best, least = exponent, torch.full_like(grouped[..., 0], float("inf"))
    for shift in (0, 1, -1):
        candidate = (exponent + shift).clamp(-_SCALE_BIAS, _NAN_SCALE - 1 - _SCALE_BIAS)
        scaled = torch.ldexp(magnitude, -candidate.unsqueeze(-1))
        error = _nearest_magnitudes(scaled).sub_(scaled).square_().sum(-1)
        error = torch.ldexp(error, 2 * candidate)
        better = error < least
        best, least = torch.where(better, candidate, best), torch.where(better, error, least)
    return best


def _nearest_magnitudes(scaled: Tensor) -> Tensor:
    """Return the values of ``_nearest_codes(scaled)`` for ``scaled >= 0``, without the codes.

    The codes are multiples of 0.5 below 2, of 1 below 4 and of 2 up to 6, and rounding half to even
    within each range rounds to the even code.
    """
    fine = (scaled * 2).round_().mul_(0.5)
    coarse = torch.where(scaled < 4, scaled.round(), (scaled * 0.5).round_().mul_(2))
    return torch.where(scaled < 2, fine, coarse).clamp_(max=_VALUES[-1])


def _check_quantizable(weight: Tensor) -> None:
    if weight.shape[-1] % MXFP4_BLOCK:
        raise ValueError(f"MXFP4 needs a last dimension divisible by 32, got {weight.shape[-1]}")
    if not torch.isfinite(weight).all():
        raise ValueError("MXFP4 cannot hold NaN or infinity; the weight contains such values")


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
