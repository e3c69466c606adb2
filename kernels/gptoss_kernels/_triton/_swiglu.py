"""Device code of the clamped, interleaved SwiGLU: alone, and on an accumulator tile."""

import triton
import triton.language as tl


@triton.jit
def _swiglu_forward(gate, up, ALPHA: tl.constexpr, LIMIT: tl.constexpr):
    """Return the activation of fp32 halves."""
    gate = tl.minimum(gate, LIMIT)
    up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
    # In the order of the backward pass, which makes the activation again: the same bits.
    return (up + 1.0) * (gate * tl.sigmoid(ALPHA * gate))


@triton.jit
def _swiglu_backward(gate, up, d_activation, ALPHA: tl.constexpr, LIMIT: tl.constexpr):
    """Return the activation and the gradients of both halves, zero where a clamp is active."""
    clamped_gate = tl.minimum(gate, LIMIT)
    clamped_up = tl.minimum(tl.maximum(up, -LIMIT), LIMIT)
    slope = tl.sigmoid(ALPHA * clamped_gate)
    swish = clamped_gate * slope
    d_gate = d_activation * (clamped_up + 1.0) * (slope + ALPHA * swish * (1.0 - slope))
    d_up = d_activation * swish
    d_gate = tl.where(gate <= LIMIT, d_gate, 0.0)
    d_up = tl.where(tl.abs(up) <= LIMIT, d_up, 0.0)
    return (clamped_up + 1.0) * swish, d_gate, d_up


@triton.jit
def _swiglu_forward_kernel(
    gate_up_ptr,
    out_ptr,
    count,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``out[i] = swiglu(gate_up[2i], gate_up[2i + 1])`` over a flat tensor of ``count`` outputs."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    wide = 2 * start + tl.arange(0, 2 * BLOCK)
    both = tl.load(gate_up_ptr + wide, wide < 2 * count, 0.0).to(tl.float32)
    gate, up = tl.split(tl.reshape(both, (BLOCK, 2)))
    index = start + tl.arange(0, BLOCK)
    value = _swiglu_forward(gate, up, ALPHA, LIMIT)
    tl.store(out_ptr + index, value.to(out_ptr.dtype.element_ty), index < count)


@triton.jit
def _swiglu_backward_kernel(
    gate_up_ptr,
    d_activation_ptr,
    gates_ptr,
    d_gate_up_ptr,
    activation_ptr,
    share_ptr,
    count_ptr,
    COLUMNS: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: the gradient of swiglu's input.

    With GATED the incoming gradient is that of the unweighted row: it is multiplied by the row's
    routing weight, and the activation and its product with the incoming gradient are written, too.
    """
    row = tl.program_id(0).to(tl.int64)
    if row < tl.load(count_ptr):
        gate = 1.0
        if GATED:
            gate = tl.load(gates_ptr + row).to(tl.float32)
        share = tl.zeros((BLOCK,), dtype=tl.float32)
        for start in range(0, COLUMNS, BLOCK):
            wide = 2 * start + tl.arange(0, 2 * BLOCK)
            both = tl.load(gate_up_ptr + row * (2 * COLUMNS) + wide, wide < 2 * COLUMNS, 0.0)
            gate_half, up_half = tl.split(tl.reshape(both.to(tl.float32), (BLOCK, 2)))
            index = start + tl.arange(0, BLOCK)
            inside = index < COLUMNS
            d_activation = tl.load(d_activation_ptr + row * COLUMNS + index, inside, 0.0)
            d_activation = d_activation.to(tl.float32)
            if GATED:
                # The activation may be written over it, by another thread than the one that read.
                tl.debug_barrier()
            value, d_gate, d_up = _swiglu_backward(
                gate_half, up_half, d_activation * gate, ALPHA, LIMIT
            )
            both = tl.reshape(tl.join(d_gate, d_up), (2 * BLOCK,))
            both = both.to(d_gate_up_ptr.dtype.element_ty)
            tl.store(d_gate_up_ptr + row * (2 * COLUMNS) + wide, both, wide < 2 * COLUMNS)
            if GATED:
                share += tl.where(inside, value * d_activation, 0.0)
                value = value.to(activation_ptr.dtype.element_ty)
                tl.store(activation_ptr + row * COLUMNS + index, value, inside)
        if GATED:
            tl.store(share_ptr + row, tl.sum(share, axis=0))


@triton.jit
def _store_swiglu(
    acc,
    local,
    column_tile,
    valid,
    out_ptr,
    activation_ptr,
    N: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Store a tile of Z ``[M, N]`` and of ``swiglu(Z)`` ``[M, N/2]``."""
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    stored = acc.to(out_ptr.dtype.element_ty)
    mask = valid[:, None] & (columns[None, :] < N)
    tl.store(out_ptr + local[:, None] * N + columns[None, :], stored, mask)
    # From the rounded Z, so that backward, which reads Z, sees the same activation.
    gate, up = tl.split(tl.reshape(stored.to(tl.float32), (BLOCK_M, BLOCK_N // 2, 2)))
    half = column_tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    value = _swiglu_forward(gate, up, ALPHA, LIMIT).to(activation_ptr.dtype.element_ty)
    half_ptrs = activation_ptr + local[:, None] * (N // 2) + half[None, :]
    tl.store(half_ptrs, value, valid[:, None] & (half[None, :] < N // 2))
