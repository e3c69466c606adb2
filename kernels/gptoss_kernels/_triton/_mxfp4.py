"""Device code of MXFP4: decode, quantise, and merge-then-quantise-then-decode."""

import triton
import triton.language as tl


@triton.jit
def _scale_value(scales):
    """Return 2^(scale - 127) as fp32 from its bits; 2^-127 is subnormal, byte 255 is NaN."""
    scales = scales.to(tl.int32)
    bits = tl.where(scales == 0, 1 << 22, scales << 23)
    # 0x7FC00000, a quiet NaN.
    return tl.where(scales == 255, 2143289344, bits).to(tl.float32, bitcast=True)


@triton.jit
def _code_value(codes):
    """Return the value of e2m1 codes as fp32.

    The three low bits, put where fp32 has its lowest exponent bits and its first mantissa bit, are
    the value times 2^-126, subnormal where e2m1 is; the product with 2^126 is exact.
    """
    codes = codes.to(tl.int32)
    bits = ((codes & 8) << 28) | ((codes & 7) << 22)
    return bits.to(tl.float32, bitcast=True) * 8.507059173023462e37


@triton.jit
def _decode(packed, scales, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return ``[ROWS, COLUMNS]`` fp32 from ``[ROWS, COLUMNS/2]`` bytes, one scale per 32 values."""
    values = tl.join(_code_value(packed & 0xF), _code_value(packed >> 4))
    values = tl.reshape(values, (ROWS, COLUMNS // 32, 32)) * _scale_value(scales)[:, :, None]
    return tl.reshape(values, (ROWS, COLUMNS))


@triton.jit
def _quantize(values, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """Return codes ``[ROWS, BLOCKS, 32]`` int32 and scale bytes ``[ROWS, BLOCKS]`` int32 of fp32.

    The OCP rule, ``floor(log2(amax)) - 2``, read off the bits. A block with a value that is not
    finite gets the NaN scale, so that it shows instead of turning into a plausible number.
    """
    amax_bits = tl.max(tl.abs(values).to(tl.int32, bitcast=True), axis=2)
    exponent = (amax_bits >> 23) - 127 - 2
    exponent = tl.minimum(tl.maximum(exponent, -127), 127)
    inverse = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    magnitude = tl.abs(values) * inverse[:, :, None]
    codes = (magnitude > 0.25).to(tl.int32) + (magnitude >= 0.75).to(tl.int32)
    codes += (magnitude > 1.25).to(tl.int32) + (magnitude >= 1.75).to(tl.int32)
    codes += (magnitude > 2.5).to(tl.int32) + (magnitude >= 3.5).to(tl.int32)
    codes += (magnitude > 5.0).to(tl.int32)
    negative = values.to(tl.int32, bitcast=True) < 0
    codes = codes | (negative.to(tl.int32) << 3)
    scale = tl.where(amax_bits >= 2139095040, 255, exponent + 127)  # 0x7F800000, infinity
    return codes, scale


@triton.jit
def _dequantize_kernel(blocks_ptr, scales_ptr, out_ptr, count, BLOCK: tl.constexpr):
    """Decode ``count`` blocks of 32 values that lie one after the other."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = (block < count)[:, None]
    byte = tl.arange(0, 16)
    packed = tl.load(blocks_ptr + block[:, None] * 16 + byte[None, :], exists, 0)
    scales = tl.load(scales_ptr + block[:, None], exists, 0)
    values = _decode(packed, scales, BLOCK, 32)
    out_ptrs = out_ptr + block[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(out_ptrs, values.to(out_ptr.dtype.element_ty), exists)


@triton.jit
def _quantize_kernel(values_ptr, blocks_ptr, scales_ptr, count, BLOCK: tl.constexpr):
    """Quantise ``count`` blocks of 32 values that lie one after the other."""
    block = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = (block < count)[:, None]
    value_ptrs = values_ptr + block[:, None] * 32 + tl.arange(0, 32)[None, :]
    values = tl.load(value_ptrs, exists, 0.0).to(tl.float32)
    codes, scale = _quantize(tl.reshape(values, (BLOCK, 1, 32)), BLOCK, 1)
    low, high = tl.split(tl.reshape(codes, (BLOCK, 16, 2)))
    packed = (low | (high << 4)).to(tl.uint8)
    tl.store(blocks_ptr + block[:, None] * 16 + tl.arange(0, 16)[None, :], packed, exists)
    tl.store(scales_ptr + block[:, None], scale.to(tl.uint8), exists)


@triton.jit
def _merged_kernel(
    blocks_ptr,
    scales_ptr,
    dense_ptr,
    stride_de,
    stride_dn,
    stride_dk,
    lora_a_ptr,
    lora_b_ptr,
    scaling,
    out_ptr,
    N: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """``out[e] = decode(Q(W_e + scaling * B_e A_e))``, each step rounded as in the reference.

    The sum over the rank is one multiply and one add at a time, in order; launch it with floating
    point fusion off, or a multiply and its add become one rounding.
    """
    expert = tl.program_id(2).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.program_id(0) * BLOCK_K
    k = start + tl.arange(0, BLOCK_K)
    row = (n < N)[:, None]
    inside = row & (k < K)[None, :]
    if PACKED:
        pair = start // 2 + tl.arange(0, BLOCK_K // 2)
        block = start // 32 + tl.arange(0, BLOCK_K // 32)
        blocks_ptr += expert * (N * (K // 2))
        scales_ptr += expert * (N * (K // 32))
        packed_ptrs = blocks_ptr + n[:, None] * (K // 2) + pair[None, :]
        packed = tl.load(packed_ptrs, row & (pair < K // 2)[None, :], 0)
        scale_ptrs = scales_ptr + n[:, None] * (K // 32) + block[None, :]
        weight = _decode(
            packed, tl.load(scale_ptrs, row & (block < K // 32)[None, :], 0), BLOCK_N, BLOCK_K
        )
    else:
        dense_ptr += expert * stride_de
        dense_ptrs = dense_ptr + n[:, None] * stride_dn + k[None, :] * stride_dk
        weight = tl.load(dense_ptrs, inside, 0.0).to(tl.float32)
    if R > 0:
        delta = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
        for r in range(R):
            b = tl.load(lora_b_ptr + (expert * N + n) * R + r, n < N, 0.0).to(tl.float32)
            a = tl.load(lora_a_ptr + (expert * R + r) * K + k, k < K, 0.0).to(tl.float32)
            delta += b[:, None] * a[None, :]
        weight += delta * scaling
    grouped = tl.reshape(weight, (BLOCK_N, BLOCK_K // 32, 32))
    codes, scale = _quantize(grouped, BLOCK_N, BLOCK_K // 32)
    values = tl.reshape(_code_value(codes) * _scale_value(scale)[:, :, None], (BLOCK_N, BLOCK_K))
    out_ptrs = out_ptr + (expert * N + n)[:, None] * K + k[None, :]
    tl.store(out_ptrs, values.to(out_ptr.dtype.element_ty), inside)
