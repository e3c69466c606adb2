"""Device code of the loops over K: a dense matrix by pointers or by TMA, and MXFP4."""

# Legend: N columns out, K columns in.

import triton
import triton.language as tl
from gptoss_kernels._triton._mxfp4 import _decode


@triton.jit
def _dense_product(
    acc,
    rows_ptr,
    stride_rows,
    row_ids,
    matrix_ptr,
    stride_n,
    stride_k,
    columns,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Return ``acc + rows[row_ids] @ matrix^T``."""
    k = tl.arange(0, BLOCK_K)
    row_ptrs = rows_ptr + row_ids[:, None] * stride_rows + k[None, :]
    matrix_ptrs = matrix_ptr + k[:, None] * stride_k + columns[None, :] * stride_n
    fits = columns[None, :] < N
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0 and N % BLOCK_N == 0:
            left = tl.load(row_ptrs)
            right = tl.load(matrix_ptrs)
        elif K % BLOCK_K == 0:
            left = tl.load(row_ptrs)
            right = tl.load(matrix_ptrs, fits, 0.0)
        else:
            inside = start + k < K
            left = tl.load(row_ptrs, inside[None, :], 0.0)
            right = tl.load(matrix_ptrs, inside[:, None] & fits, 0.0)
        acc = tl.dot(left, right, acc, input_precision="ieee")
        row_ptrs += BLOCK_K
        matrix_ptrs += BLOCK_K * stride_k
    return acc


@triton.jit
def _tma_product(
    acc,
    rows_ptr,
    stride_rows,
    row_ids,
    rows_desc,
    first_row,
    matrix_desc,
    expert,
    first_column,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS_TMA: tl.constexpr,
    TURNED: tl.constexpr,
):
    """Return ``acc + rows @ matrix^T`` with the matrix, and the rows if told so, copied by TMA.

    The descriptors are flat: the matrix is [E * N, K], or [E * K, N] when N is contiguous. A tile
    that passes the end of an expert reads the next one's values into columns that are never stored,
    or against rows that are zero there.
    """
    k = tl.arange(0, BLOCK_K)
    row_ptrs = rows_ptr + row_ids[:, None] * stride_rows + k[None, :]
    for start in range(0, K, BLOCK_K):
        if ROWS_TMA:
            left = rows_desc.load([first_row, start])
        elif K % BLOCK_K == 0:
            left = tl.load(row_ptrs)
        else:
            left = tl.load(row_ptrs, (start + k < K)[None, :], 0.0)
        if TURNED:
            right = matrix_desc.load([expert * K + start, first_column])
        else:
            right = matrix_desc.load([expert * N + first_column, start]).T
        acc = tl.dot(left, right, acc, input_precision="ieee")
        row_ptrs += BLOCK_K
    return acc


@triton.jit
def _packed_product(
    acc,
    rows_ptr,
    stride_rows,
    row_ids,
    blocks_ptr,
    scales_ptr,
    columns,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Return ``acc + rows[row_ids] @ decode(blocks, scales)^T``; K is the packed axis.

    No GPU multiplies bf16 by e2m1 in hardware, so ``tl.dot_scaled`` decodes in registers as well;
    doing it here keeps the decoder the one that is tested, for every dtype of the rows.
    """
    k = tl.arange(0, BLOCK_K)
    pair = tl.arange(0, BLOCK_K // 2)
    block = tl.arange(0, BLOCK_K // 32)
    row_ptrs = rows_ptr + row_ids[:, None] * stride_rows + k[None, :]
    blocks_ptrs = blocks_ptr + columns[:, None] * (K // 2) + pair[None, :]
    scales_ptrs = scales_ptr + columns[:, None] * (K // 32) + block[None, :]
    fits = (columns < N)[:, None]
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            left = tl.load(row_ptrs)
            packed = tl.load(blocks_ptrs, fits, 0)
            scales = tl.load(scales_ptrs, fits, 0)
        else:
            left = tl.load(row_ptrs, (start + k < K)[None, :], 0.0)
            packed = tl.load(blocks_ptrs, fits & (start + 2 * pair < K)[None, :], 0)
            scales = tl.load(scales_ptrs, fits & (start + 32 * block < K)[None, :], 0)
        right = _decode(packed, scales, BLOCK_N, BLOCK_K).to(left.dtype)
        acc = tl.dot(left, tl.trans(right), acc, input_precision="ieee")
        row_ptrs += BLOCK_K
        blocks_ptrs += BLOCK_K // 2
        scales_ptrs += BLOCK_K // 32
    return acc
