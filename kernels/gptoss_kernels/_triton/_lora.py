"""Device code of the LoRA factors' gradients: sums over an expert's rows."""

import triton
import triton.language as tl


@triton.jit
def _ragged_outer_kernel(
    skinny_ptr,
    stride_skinny,
    wide_ptr,
    stride_wide,
    indices_ptr,
    gates_ptr,
    expert_offsets_ptr,
    out_ptr,
    stride_oe,
    stride_or,
    stride_oq,
    scaling,
    Q: tl.constexpr,
    R: tl.constexpr,
    R_PAD: tl.constexpr,
    GATHER: tl.constexpr,
    GATED: tl.constexpr,
    ADDED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """``out[e] = scaling * skinny[rows of e]^T wide[rows of e]``, skinny times gates if GATED.

    ADDED: added to what ``out`` holds, after it was scaled.

    A program owns its piece of the output and walks down its expert's rows: no atomics.
    """
    expert = tl.program_id(1).to(tl.int64)
    start = tl.load(expert_offsets_ptr + expert)
    stop = tl.load(expert_offsets_ptr + expert + 1)
    column = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    r = tl.arange(0, R_PAD)
    # Columns of the wide side are the long axis of the tile: a tensor core wants 64 there.
    acc = tl.zeros((BLOCK_Q, R_PAD), dtype=tl.float32)
    local = tl.arange(0, BLOCK_M)
    picked = start + local
    if GATHER:
        picked = tl.load(indices_ptr + picked, picked < stop, 0)
    for first in range(start, stop, BLOCK_M):
        row = first + local
        exists = row < stop
        wide_row = picked
        # The next rows' numbers, a step before they are needed.
        picked = row + BLOCK_M
        if GATHER:
            picked = tl.load(indices_ptr + picked, picked < stop, 0)
        skinny_ptrs = skinny_ptr + row.to(tl.int64)[:, None] * stride_skinny + r[None, :]
        skinny = tl.load(skinny_ptrs, exists[:, None] & (r < R)[None, :], 0.0)
        if GATED:
            gates = tl.load(gates_ptr + row, exists, 0.0).to(tl.float32)
            skinny = (skinny.to(tl.float32) * gates[:, None]).to(skinny.dtype)
        wide_ptrs = wide_ptr + wide_row.to(tl.int64)[:, None] * stride_wide + column[None, :]
        wide = tl.load(wide_ptrs, exists[:, None] & (column < Q)[None, :], 0.0)
        acc = tl.dot(tl.trans(wide), skinny, acc, input_precision="ieee")
    out_ptrs = out_ptr + expert * stride_oe + column[:, None] * stride_oq + r[None, :] * stride_or
    mask = (column < Q)[:, None] & (r < R)[None, :]
    acc = acc * scaling
    if ADDED:
        acc += tl.load(out_ptrs, mask, 0.0)
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask)
