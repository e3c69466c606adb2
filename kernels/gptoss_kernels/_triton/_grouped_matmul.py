"""Device code of the grouped products: one persistent tile loop, two epilogues, three sources.

A tile's accumulator comes from a dense matrix (``DENSE``), from MXFP4 decoded inside the loop
(``PACKED``) or from a product computed elsewhere (``GIVEN``); what follows it is the same.
"""

# Legend: M rows, N columns out, K columns in, E experts, R rank.

import triton
import triton.language as tl
from gptoss_kernels._triton._product_loops import _dense_product, _packed_product, _tma_product
from gptoss_kernels._triton._swiglu import _store_swiglu

DENSE = tl.constexpr(0)
PACKED = tl.constexpr(1)
GIVEN = tl.constexpr(2)


@triton.jit
def _tile_of(tile_id, row_tiles, COLUMN_TILES: tl.constexpr, GROUP: tl.constexpr):
    """Walk down GROUP row tiles, then one column tile on: rows and matrix both stay in L2."""
    group = tile_id // (GROUP * COLUMN_TILES)
    first = group * GROUP
    size = tl.minimum(row_tiles - first, GROUP)
    within = tile_id % (GROUP * COLUMN_TILES)
    return first + within % size, within // size


@triton.jit
def _start_of_tile(
    start,
    local,
    columns,
    expert,
    bias_ptr,
    low_ptr,
    stride_low,
    factor_ptr,
    stride_fe,
    stride_fn,
    stride_fr,
    scaling,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    R_PAD: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Return ``scaling * low[rows] factor^T + bias``.

    The accumulator starts with it, so that the rank-r term costs no second tile of registers.
    """
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if R > 0:
        r = tl.arange(0, R_PAD)
        low_ptrs = low_ptr + start * stride_low + local[:, None] * stride_low + r[None, :]
        low = tl.load(low_ptrs, r[None, :] < R, 0.0)
        factor_ptrs = factor_ptr + expert.to(tl.int64) * stride_fe + columns[None, :] * stride_fn
        mask = (r[:, None] < R) & (columns[None, :] < N)
        factor = tl.load(factor_ptrs + r[:, None] * stride_fr, mask, 0.0)
        acc = tl.dot(low, factor, acc, input_precision="ieee") * scaling
    if BIAS:
        bias = tl.load(bias_ptr + expert.to(tl.int64) * N + columns, columns < N, 0.0)
        acc += bias.to(tl.float32)[None, :]
    return acc


@triton.jit
def _product(
    acc,
    start,
    local,
    columns,
    valid,
    expert,
    rows_ptr,
    stride_rows,
    indices_ptr,
    matrix_ptr,
    stride_me,
    stride_mn,
    stride_mk,
    scales_ptr,
    matrix_desc,
    rows_desc,
    column_tile,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    GATHER: tl.constexpr,
    SOURCE: tl.constexpr,
    TMA: tl.constexpr,
    TURNED: tl.constexpr,
):
    """Return ``acc`` plus the tile of the product, from whichever source there is."""
    if SOURCE == GIVEN:
        mask = valid[:, None] & (columns[None, :] < N)
        given_ptrs = rows_ptr + start * stride_rows + local[:, None] * stride_rows
        acc += tl.load(given_ptrs + columns[None, :], mask, 0.0).to(tl.float32)
    else:
        row_ids = start + local
        if GATHER:
            row_ids = tl.load(indices_ptr + row_ids).to(tl.int64)
        if TMA:
            acc = _tma_product(
                acc,
                rows_ptr,
                stride_rows,
                row_ids,
                rows_desc,
                start.to(tl.int32),
                matrix_desc,
                expert,
                column_tile * BLOCK_N,
                BLOCK_N,
                BLOCK_K,
                N,
                K,
                rows_desc is not None,
                TURNED,
            )
        elif SOURCE == DENSE:
            acc = _dense_product(
                acc,
                rows_ptr,
                stride_rows,
                row_ids,
                matrix_ptr + expert.to(tl.int64) * stride_me,
                stride_mn,
                stride_mk,
                columns,
                BLOCK_N,
                BLOCK_K,
                N,
                K,
            )
        else:
            acc = _packed_product(
                acc,
                rows_ptr,
                stride_rows,
                row_ids,
                matrix_ptr + expert.to(tl.int64) * (N * (K // 2)),
                scales_ptr + expert.to(tl.int64) * (N * (K // 32)),
                columns,
                BLOCK_N,
                BLOCK_K,
                N,
                K,
            )
    return acc


@triton.jit
def _grouped_matmul_kernel(
    rows_ptr,
    stride_rows,
    indices_ptr,
    matrix_ptr,
    stride_me,
    stride_mn,
    stride_mk,
    scales_ptr,
    matrix_desc,
    rows_desc,
    bias_ptr,
    low_ptr,
    stride_low,
    factor_ptr,
    stride_fe,
    stride_fn,
    stride_fr,
    scaling,
    out_ptr,
    stride_out,
    activation_ptr,
    tile_expert_ptr,
    tile_start_ptr,
    tile_stop_ptr,
    tile_count_ptr,
    N: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    R_PAD: tl.constexpr,
    BIAS: tl.constexpr,
    GATHER: tl.constexpr,
    SOURCE: tl.constexpr,
    TMA: tl.constexpr,
    TURNED: tl.constexpr,
    EPILOGUE: tl.constexpr,
    STORED: tl.constexpr,
    ALPHA: tl.constexpr,
    LIMIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """``out = rows @ matrix^T + bias + scaling * low @ factor^T``, then the epilogue.

    EPILOGUE "store": out [M, STORED], its columns past N zero. "swiglu": out is Z [M, N] and
    activation is swiglu(Z) [M, N/2].
    """
    COLUMN_TILES: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    row_tiles = tl.load(tile_count_ptr)
    # Not flattened into the inner loop: the accumulator starts from the rank-r term, for which the
    # fused loop would wait at every step, and for every copy with it: nothing would stay in flight.
    for tile_id in tl.range(tl.program_id(0), row_tiles * COLUMN_TILES, tl.num_programs(0)):
        row_tile, column_tile = _tile_of(tile_id, row_tiles, COLUMN_TILES, GROUP)
        expert = tl.load(tile_expert_ptr + row_tile)
        stop = tl.load(tile_stop_ptr + row_tile)
        start = tl.load(tile_start_ptr + row_tile)
        local = tl.arange(0, BLOCK_M)
        valid = local < stop - start
        # Rows past the expert's last one read that last one again; they are never stored. Addresses
        # are a 64-bit start plus 32-bit offsets inside the tile, which saves half the registers.
        local = tl.minimum(local, stop - start - 1)
        start = start.to(tl.int64)
        columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = _start_of_tile(
            start,
            local,
            columns,
            expert,
            bias_ptr,
            low_ptr,
            stride_low,
            factor_ptr,
            stride_fe,
            stride_fn,
            stride_fr,
            scaling,
            BLOCK_M,
            BLOCK_N,
            N,
            R,
            R_PAD,
            BIAS,
        )
        acc = _product(
            acc,
            start,
            local,
            columns,
            valid,
            expert,
            rows_ptr,
            stride_rows,
            indices_ptr,
            matrix_ptr,
            stride_me,
            stride_mn,
            stride_mk,
            scales_ptr,
            matrix_desc,
            rows_desc,
            column_tile,
            BLOCK_N,
            BLOCK_K,
            N,
            K,
            GATHER,
            SOURCE,
            TMA,
            TURNED,
        )
        if EPILOGUE == "store":
            mask = valid[:, None] & (columns[None, :] < STORED)
            out_ptrs = out_ptr + start * stride_out + local[:, None] * stride_out
            tl.store(out_ptrs + columns[None, :], acc.to(out_ptr.dtype.element_ty), mask)
        else:
            _store_swiglu(
                acc,
                local,
                column_tile,
                valid,
                out_ptr + start * N,
                activation_ptr + start * (N // 2),
                N,
                ALPHA,
                LIMIT,
                BLOCK_M,
                BLOCK_N,
            )
