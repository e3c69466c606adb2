"""Device code of attention with sinks: the forward pass and what both directions share.

A row's visible keys are ``[max(first_key[q], P + q - window + 1), P + q]``: P keys come before the
first query, 0 but for a part of a row that is spread over ranks. ``first_key`` never decreases
along a row, so the blocks a tile has to visit are an interval, its middle part needs no mask, and
everything outside costs nothing: a window layer and a row of short documents cost what they see.

The sink is the first element of the online softmax: the running maximum starts at the sink and the
running sum at 1, so no row is ever empty and O and LSE come out as O' and LSE'.

B rows, S tokens of a row, H query heads, G query heads per key-value head, D head size; M queries
and N keys of a tile. Scores are kept in base 2: ``scaling_log2 = scaling * log2(e)``.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load_tile(ptr, rows, stride, columns, length, MASKED: tl.constexpr):
    """Load ``[rows, D]`` with 64-bit row addresses; 0 beyond ``length``."""
    pointers = ptr + (rows.to(tl.int64) * stride)[:, None] + columns[None, :]
    if MASKED:
        return tl.load(pointers, mask=(rows < length)[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def _key_bounds(
    first_key_ptr,
    start,
    length,
    before,
    window,
    HAS_WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Return the key interval of a query tile and the part of it that needs no mask."""
    last = tl.minimum(start + BLOCK_M, length) - 1
    low = tl.load(first_key_ptr + start)
    full_low = tl.load(first_key_ptr + last)
    if HAS_WINDOW:
        low = tl.maximum(low, before + start - window + 1)
        full_low = tl.maximum(full_low, before + last - window + 1)
    low = low // BLOCK_N * BLOCK_N
    high = before + last + 1
    full_low = tl.minimum(tl.maximum(tl.cdiv(full_low, BLOCK_N) * BLOCK_N, low), high)
    full_high = tl.maximum((before + start + 1) // BLOCK_N * BLOCK_N, full_low)
    return low, full_low, full_high, high


@triton.jit
def _visible(rows, columns, first_keys, window, HAS_WINDOW: tl.constexpr):
    """Return which ``[M, N]`` pairs see each other; rows are numbered as keys."""
    visible = (columns[None, :] <= rows[:, None]) & (columns[None, :] >= first_keys[:, None])
    if HAS_WINDOW:
        visible &= columns[None, :] > rows[:, None] - window
    return visible


@triton.jit
def _forward_steps(
    mixed,
    total,
    largest,
    query,
    key_ptr,
    value_ptr,
    stride_ks,
    stride_vs,
    rows,
    first_keys,
    low,
    high,
    key_length,
    window,
    scaling_log2,
    MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    sizes = tl.arange(0, HEAD_SIZE)
    for start in range(low, high, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        key = _load_tile(key_ptr, columns, stride_ks, sizes, key_length, MASKED)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling_log2
        if MASKED:
            visible = _visible(rows, columns, first_keys, window, HAS_WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new[:, None])
        decay = tl.exp2(largest - new)
        total = total * decay + tl.sum(weights, axis=1)
        value = _load_tile(value_ptr, columns, stride_vs, sizes, key_length, MASKED)
        mixed = mixed * decay[:, None]
        mixed = tl.dot(weights.to(value.dtype), value, mixed, input_precision="ieee")
        largest = new
    return mixed, total, largest


@triton.jit
def _attention_forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    sinks_ptr,
    first_key_ptr,  # [B, S] int32, numbers of keys
    out_ptr,  # [B, S, H, D]
    lse_ptr,  # [B, H, S] fp32
    stride_qb,
    stride_qh,
    stride_qs,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_vb,
    stride_vh,
    stride_vs,
    length,
    key_length,
    heads,
    batch_heads,
    window,
    scaling_log2,
    GROUP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # The last query tiles see the most keys: they start first. Heads with shared keys are together.
    program = tl.program_id(0)
    start = (tl.cdiv(length, BLOCK_M) - 1 - program // batch_heads) * BLOCK_M
    batch = (program % batch_heads // heads).to(tl.int64)
    head = (program % heads).to(tl.int64)
    query_ptr += batch * stride_qb + head * stride_qh
    key_ptr += batch * stride_kb + head // GROUP * stride_kh
    value_ptr += batch * stride_vb + head // GROUP * stride_vh
    first_key_ptr += batch * length

    rows = start + tl.arange(0, BLOCK_M)
    sizes = tl.arange(0, HEAD_SIZE)
    query = _load_tile(query_ptr, rows, stride_qs, sizes, length, True)
    first_keys = tl.load(first_key_ptr + rows, mask=rows < length, other=0)
    before = key_length - length
    low, full_low, full_high, high = _key_bounds(
        first_key_ptr, start, length, before, window, HAS_WINDOW, BLOCK_M, BLOCK_N
    )
    places = before + rows
    sink = tl.load(sinks_ptr + head).to(tl.float32) * _LOG2_E
    largest = tl.zeros([BLOCK_M], dtype=tl.float32) + sink
    total = tl.full([BLOCK_M], 1.0, dtype=tl.float32)
    mixed = tl.zeros([BLOCK_M, HEAD_SIZE], dtype=tl.float32)
    # The edge of the window or of a document, then whole tiles, then the diagonal.
    mixed, total, largest = _forward_steps(
        mixed, total, largest, query, key_ptr, value_ptr, stride_ks, stride_vs, places, first_keys,
        low, full_low, key_length, window, scaling_log2,
        True, HAS_WINDOW, HEAD_SIZE, BLOCK_N,
    )  # fmt: skip
    mixed, total, largest = _forward_steps(
        mixed, total, largest, query, key_ptr, value_ptr, stride_ks, stride_vs, places, first_keys,
        full_low, full_high, key_length, window, scaling_log2,
        False, HAS_WINDOW, HEAD_SIZE, BLOCK_N,
    )  # fmt: skip
    mixed, total, largest = _forward_steps(
        mixed, total, largest, query, key_ptr, value_ptr, stride_ks, stride_vs, places, first_keys,
        full_high, high, key_length, window, scaling_log2,
        True, HAS_WINDOW, HEAD_SIZE, BLOCK_N,
    )  # fmt: skip

    inside = rows < length
    out_ptr += batch * length * heads * HEAD_SIZE + head * HEAD_SIZE
    pointers = out_ptr + (rows.to(tl.int64) * heads * HEAD_SIZE)[:, None] + sizes[None, :]
    mixed = mixed / total[:, None]
    tl.store(pointers, mixed.to(out_ptr.dtype.element_ty), mask=inside[:, None])
    lse_ptr += (batch * heads + head) * length
    tl.store(lse_ptr + rows, (largest + tl.log2(total)) * _LN_2, mask=inside)
