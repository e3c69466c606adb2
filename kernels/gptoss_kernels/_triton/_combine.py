"""Device code of combine: one token's output from the rows its experts made."""

import triton
import triton.language as tl


@triton.jit
def _combine_kernel(
    rows_ptr,
    row_indices_ptr,
    weights_ptr,
    out_ptr,
    H: tl.constexpr,
    K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``out[t] = sum_k weights[t, k] * rows[row_indices[t, k]]``, in the order of k, in fp32."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for choice in tl.static_range(K):
        row = tl.load(row_indices_ptr + token * K + choice).to(tl.int64)
        columns = tl.where(row >= 0, H, 0)  # of an absent row nothing is read
        term = tl.load(rows_ptr + row * H + column, column < columns, 0.0)
        term = term.to(tl.float32)
        if WEIGHTED:
            term *= tl.load(weights_ptr + token * K + choice).to(tl.float32)
        total += term
    tl.store(out_ptr + token * H + column, total.to(out_ptr.dtype.element_ty), column < H)


@triton.jit
def _combine_backward_kernel(
    d_out_ptr,
    rows_ptr,
    row_indices_ptr,
    weights_ptr,
    d_rows_ptr,
    d_weights_ptr,
    H: tl.constexpr,
    K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``d_rows[row] = weight * d_out[t]`` and ``d_weights[t, k] = <d_out[t], rows[row]>``."""
    slot = tl.program_id(0).to(tl.int64)
    row = tl.load(row_indices_ptr + slot).to(tl.int64)
    columns = tl.where(row >= 0, H, 0)
    weight = 1.0
    if WEIGHTED:
        weight = tl.load(weights_ptr + slot).to(tl.float32)
    product = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, H, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        d_out = tl.load(d_out_ptr + (slot // K) * H + column, inside, 0.0).to(tl.float32)
        d_row = (d_out * weight).to(d_rows_ptr.dtype.element_ty)
        tl.store(d_rows_ptr + row * H + column, d_row, inside)
        if WEIGHTED:
            product += d_out * tl.load(rows_ptr + row * H + column, inside, 0.0).to(tl.float32)
    if WEIGHTED:
        total = tl.sum(product, axis=0).to(d_weights_ptr.dtype.element_ty)
        tl.store(d_weights_ptr + slot, total)


@triton.jit
def _routing_gradient_kernel(
    share_ptr,
    against_bias_ptr,
    stride_bias,
    row_indices_ptr,
    out_ptr,
    count,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``out[t, k] = share[row] + against_bias[row]`` of the pair's row, 0 where it has none."""
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_indices_ptr + slot, slot < count, -1).to(tl.int64)
    total = tl.load(share_ptr + row, row >= 0, 0.0)
    if BIAS:
        total += tl.load(against_bias_ptr + row * stride_bias, row >= 0, 0.0).to(tl.float32)
    tl.store(out_ptr + slot, total.to(out_ptr.dtype.element_ty), slot < count)
