"""Device code of ``add_sinks``: O' and LSE' from the O and LSE of a kernel without sinks.

B rows, S tokens of a row, H query heads, D head size; M tokens of a tile.
"""

import triton
import triton.language as tl


@triton.jit
def _add_sinks_kernel(
    out_ptr,  # [B, S, H, D], O
    lse_ptr,  # [B, H, S] fp32, LSE
    sinks_ptr,  # [H]
    scaled_ptr,  # [B, S, H, D], contiguous, O'; may be O
    with_sink_ptr,  # [B, H, S] fp32, contiguous, LSE'
    stride_ob,
    stride_os,
    stride_oh,
    stride_lb,
    stride_lh,
    stride_ls,
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
    inside = rows < length
    wide_rows = rows.to(tl.int64)
    sizes = tl.arange(0, HEAD_SIZE)

    lse_ptr += batch * stride_lb + head * stride_lh
    lse = tl.load(lse_ptr + wide_rows * stride_ls, mask=inside, other=0.0)
    sink = tl.load(sinks_ptr + head).to(tl.float32)
    # Shares of the row's keys and of its sink, the larger one taken as 1.
    top = tl.maximum(lse, sink)
    of_keys = tl.exp(lse - top)
    total = of_keys + tl.exp(sink - top)

    out_ptr += batch * stride_ob + head * stride_oh
    pointers = out_ptr + (wide_rows * stride_os)[:, None] + sizes[None, :]
    out = tl.load(pointers, mask=inside[:, None], other=0.0).to(tl.float32)
    scaled = out * (of_keys / total)[:, None]
    scaled_ptr += (batch * length * heads + head) * HEAD_SIZE
    cells = scaled_ptr + (wide_rows * (heads * HEAD_SIZE))[:, None] + sizes[None, :]
    tl.store(cells, scaled.to(scaled_ptr.dtype.element_ty), mask=inside[:, None])
    with_sink_ptr += (batch * heads + head) * length
    tl.store(with_sink_ptr + rows, top + tl.log(total), mask=inside)
