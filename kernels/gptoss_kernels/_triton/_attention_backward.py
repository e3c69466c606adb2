"""Device code of the backward of attention with sinks: rowsum(dO * O), dK and dV, dQ.

Two passes over the scores, one that owns keys and one that owns queries, instead of one with
atomics: the same bits in every run. LSE is LSE', so ``exp(scores - LSE')`` is the softmax with the
sink in it, and nothing here mentions sinks.

B rows, S tokens of a row, P keys before the first query, H query heads, G query heads per key-value
head, D head size; M queries and N keys of a tile.
"""

import triton
import triton.language as tl
from gptoss_kernels._triton._attention import _LOG2_E, _key_bounds, _load_tile, _visible


@triton.jit
def _attention_delta_kernel(
    grad_ptr,  # [B, S, H, D], dO
    out_ptr,  # [B, S, H, D], contiguous
    delta_ptr,  # [B, H, S] fp32
    stride_gb,
    stride_gs,
    stride_gh,
    length,
    heads,
    batch_heads,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    program = tl.program_id(0)
    start = program // batch_heads * BLOCK_M
    batch = (program % batch_heads // heads).to(tl.int64)
    head = (program % heads).to(tl.int64)
    rows = start + tl.arange(0, BLOCK_M)
    sizes = tl.arange(0, HEAD_SIZE)
    grad_ptr += batch * stride_gb + head * stride_gh
    out_ptr += batch * length * heads * HEAD_SIZE + head * HEAD_SIZE
    grad = _load_tile(grad_ptr, rows, stride_gs, sizes, length, True).to(tl.float32)
    out = _load_tile(out_ptr, rows, heads * HEAD_SIZE, sizes, length, True).to(tl.float32)
    delta_ptr += (batch * heads + head) * length
    tl.store(delta_ptr + rows, tl.sum(grad * out, axis=1), mask=rows < length)


@triton.jit
def _key_value_steps(
    grad_key,
    grad_value,
    key,
    value,
    query_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    first_key_ptr,
    stride_qh,
    stride_qs,
    stride_gs,
    stride_gh,
    columns,
    low,
    high,
    length,
    key_length,
    window,
    scaling_log2,
    GROUP: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    sizes = tl.arange(0, HEAD_SIZE)
    steps = tl.cdiv(high - low, BLOCK_M)
    # One loop over heads and query tiles: nested, the compiler keeps every head's addresses in
    # registers and spills.
    for step in range(0, GROUP * steps):
        member = step // steps
        rows = low + step % steps * BLOCK_M + tl.arange(0, BLOCK_M)
        queries = query_ptr + tl.cast(member, tl.int64) * stride_qh
        grads = grad_ptr + tl.cast(member, tl.int64) * stride_gh
        query = _load_tile(queries, rows, stride_qs, sizes, length, MASKED)
        grad = _load_tile(grads, rows, stride_gs, sizes, length, MASKED)
        cells = tl.cast(member, tl.int64) * length + rows
        if MASKED:
            lse = tl.load(lse_ptr + cells, mask=rows < length, other=0.0) * _LOG2_E
            delta = tl.load(delta_ptr + cells, mask=rows < length, other=0.0)
        else:
            lse = tl.load(lse_ptr + cells) * _LOG2_E
            delta = tl.load(delta_ptr + cells)
        # Transposed, [N, M], so that both sums over queries are plain products.
        scores = tl.dot(key, tl.trans(query), input_precision="ieee") * scaling_log2
        weights = tl.exp2(scores - lse[None, :])
        if MASKED:
            # A row beyond the end has first_key = key_length, which no key reaches.
            first_keys = tl.load(first_key_ptr + rows, mask=rows < length, other=key_length)
            places = key_length - length + rows
            visible = columns[:, None] <= places[None, :]
            visible &= columns[:, None] >= first_keys[None, :]
            if HAS_WINDOW:
                visible &= columns[:, None] > places[None, :] - window
            weights = tl.where(visible, weights, 0.0)
        grad_value = tl.dot(weights.to(grad.dtype), grad, grad_value, input_precision="ieee")
        grad_weights = tl.dot(value, tl.trans(grad), input_precision="ieee")
        grad_scores = weights * (grad_weights - delta[None, :])
        grad_key = tl.dot(grad_scores.to(query.dtype), query, grad_key, input_precision="ieee")
    return grad_key, grad_value


@triton.jit
def _attention_key_value_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    grad_ptr,  # dO
    lse_ptr,
    delta_ptr,
    first_key_ptr,
    last_query_ptr,
    grad_key_ptr,  # [B, P + S, H / G, D]
    grad_value_ptr,
    stride_qb,
    stride_qh,
    stride_qs,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_vb,
    stride_vh,
    stride_vs,
    stride_gb,
    stride_gs,
    stride_gh,
    length,
    key_length,
    heads,
    window,
    scaling,
    scaling_log2,
    batch_groups,
    GROUP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # The first keys are seen by the most queries: they start first. One program sums over the G
    # heads that share its keys, so no atomics and the same bits in every run.
    program = tl.program_id(0)
    start = program // batch_groups * BLOCK_N
    groups = heads // GROUP
    batch = (program % batch_groups // groups).to(tl.int64)
    group = (program % groups).to(tl.int64)
    first_key_ptr += batch * length
    last_query_ptr += batch * key_length

    columns = start + tl.arange(0, BLOCK_N)
    sizes = tl.arange(0, HEAD_SIZE)
    key_ptr += batch * stride_kb + group * stride_kh
    value_ptr += batch * stride_vb + group * stride_vh
    key = _load_tile(key_ptr, columns, stride_ks, sizes, key_length, True)
    value = _load_tile(value_ptr, columns, stride_vs, sizes, key_length, True)

    before = key_length - length
    last = tl.minimum(start + BLOCK_N, key_length) - 1
    high = tl.load(last_query_ptr + last) + 1
    full_high = tl.load(last_query_ptr + start) + 1
    if HAS_WINDOW:
        high = tl.minimum(high, last + window - before)
        full_high = tl.minimum(full_high, start + window - before)
    # Keys before the first query are seen from there on.
    low = tl.maximum(start - before, 0) // BLOCK_M * BLOCK_M
    high = tl.maximum(high, low)
    full_low = tl.minimum(tl.cdiv(tl.maximum(last - before, 0), BLOCK_M) * BLOCK_M, high)
    full_high = tl.maximum(full_high // BLOCK_M * BLOCK_M, full_low)

    grad_key = tl.zeros([BLOCK_N, HEAD_SIZE], dtype=tl.float32)
    grad_value = tl.zeros([BLOCK_N, HEAD_SIZE], dtype=tl.float32)
    head = group * GROUP
    query_ptr += batch * stride_qb + head * stride_qh
    grad_ptr += batch * stride_gb + head * stride_gh
    lse_ptr += (batch * heads + head) * length
    delta_ptr += (batch * heads + head) * length
    # The diagonal, then whole tiles, then the edge of the window or of a document.
    grad_key, grad_value = _key_value_steps(
        grad_key, grad_value, key, value, query_ptr, grad_ptr, lse_ptr, delta_ptr, first_key_ptr,
        stride_qh, stride_qs, stride_gs, stride_gh, columns, low, full_low, length,
        key_length, window, scaling_log2, GROUP, True, HAS_WINDOW, HEAD_SIZE, BLOCK_M,
    )  # fmt: skip
    grad_key, grad_value = _key_value_steps(
        grad_key, grad_value, key, value, query_ptr, grad_ptr, lse_ptr, delta_ptr, first_key_ptr,
        stride_qh, stride_qs, stride_gs, stride_gh, columns, full_low, full_high, length,
        key_length, window, scaling_log2, GROUP, False, HAS_WINDOW, HEAD_SIZE, BLOCK_M,
    )  # fmt: skip
    grad_key, grad_value = _key_value_steps(
        grad_key, grad_value, key, value, query_ptr, grad_ptr, lse_ptr, delta_ptr, first_key_ptr,
        stride_qh, stride_qs, stride_gs, stride_gh, columns, full_high, high, length,
        key_length, window, scaling_log2, GROUP, True, HAS_WINDOW, HEAD_SIZE, BLOCK_M,
    )  # fmt: skip

    offset = batch * key_length * groups * HEAD_SIZE + group * HEAD_SIZE
    cells = offset + (columns.to(tl.int64) * groups * HEAD_SIZE)[:, None] + sizes[None, :]
    inside = (columns < key_length)[:, None]
    grad_key = (grad_key * scaling).to(grad_key_ptr.dtype.element_ty)
    tl.store(grad_key_ptr + cells, grad_key, mask=inside)
    tl.store(grad_value_ptr + cells, grad_value.to(grad_value_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _query_steps(
    grad_query,
    query,
    grad,
    lse,
    delta,
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
        value = _load_tile(value_ptr, columns, stride_vs, sizes, key_length, MASKED)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling_log2
        weights = tl.exp2(scores - lse[:, None])
        if MASKED:
            visible = _visible(rows, columns, first_keys, window, HAS_WINDOW)
            weights = tl.where(visible, weights, 0.0)
        grad_weights = tl.dot(grad, tl.trans(value), input_precision="ieee")
        grad_scores = weights * (grad_weights - delta[:, None])
        grad_query = tl.dot(grad_scores.to(key.dtype), key, grad_query, input_precision="ieee")
    return grad_query


@triton.jit
def _attention_query_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    grad_ptr,  # dO
    lse_ptr,
    delta_ptr,
    first_key_ptr,
    grad_query_ptr,  # [B, S, H, D]
    stride_qb,
    stride_qh,
    stride_qs,
    stride_kb,
    stride_kh,
    stride_ks,
    stride_vb,
    stride_vh,
    stride_vs,
    stride_gb,
    stride_gs,
    stride_gh,
    length,
    key_length,
    heads,
    batch_heads,
    window,
    scaling,
    scaling_log2,
    GROUP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    program = tl.program_id(0)
    start = (tl.cdiv(length, BLOCK_M) - 1 - program // batch_heads) * BLOCK_M
    batch = (program % batch_heads // heads).to(tl.int64)
    head = (program % heads).to(tl.int64)
    query_ptr += batch * stride_qb + head * stride_qh
    key_ptr += batch * stride_kb + head // GROUP * stride_kh
    value_ptr += batch * stride_vb + head // GROUP * stride_vh
    grad_ptr += batch * stride_gb + head * stride_gh
    first_key_ptr += batch * length
    row_offset = (batch * heads + head) * length

    rows = start + tl.arange(0, BLOCK_M)
    inside = rows < length
    sizes = tl.arange(0, HEAD_SIZE)
    query = _load_tile(query_ptr, rows, stride_qs, sizes, length, True)
    grad = _load_tile(grad_ptr, rows, stride_gs, sizes, length, True)
    lse = tl.load(lse_ptr + row_offset + rows, mask=inside, other=0.0) * _LOG2_E
    delta = tl.load(delta_ptr + row_offset + rows, mask=inside, other=0.0)
    first_keys = tl.load(first_key_ptr + rows, mask=inside, other=0)
    before = key_length - length
    low, full_low, full_high, high = _key_bounds(
        first_key_ptr, start, length, before, window, HAS_WINDOW, BLOCK_M, BLOCK_N
    )
    places = before + rows
    grad_query = tl.zeros([BLOCK_M, HEAD_SIZE], dtype=tl.float32)
    grad_query = _query_steps(
        grad_query, query, grad, lse, delta, key_ptr, value_ptr, stride_ks, stride_vs, places,
        first_keys, low, full_low, key_length, window, scaling_log2,
        True, HAS_WINDOW, HEAD_SIZE, BLOCK_N,
    )  # fmt: skip
    grad_query = _query_steps(
        grad_query, query, grad, lse, delta, key_ptr, value_ptr, stride_ks, stride_vs, places,
        first_keys, full_low, full_high, key_length, window, scaling_log2,
        False, HAS_WINDOW, HEAD_SIZE, BLOCK_N,
    )  # fmt: skip
    grad_query = _query_steps(
        grad_query, query, grad, lse, delta, key_ptr, value_ptr, stride_ks, stride_vs, places,
        first_keys, full_high, high, key_length, window, scaling_log2,
        True, HAS_WINDOW, HEAD_SIZE, BLOCK_N,
    )  # fmt: skip

    grad_query_ptr += batch * length * heads * HEAD_SIZE + head * HEAD_SIZE
    cells = (rows.to(tl.int64) * heads * HEAD_SIZE)[:, None] + sizes[None, :]
    grad_query = (grad_query * scaling).to(grad_query_ptr.dtype.element_ty)
    tl.store(grad_query_ptr + cells, grad_query, mask=inside[:, None])
