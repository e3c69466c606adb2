"""Device code of ``rms_norm``: one program normalises one row.

N rows, H hidden.
"""

import triton
import triton.language as tl


@triton.jit
def _rms_norm_forward_kernel(
    hidden_ptr,  # [N, H]
    weight_ptr,  # [H]
    normed_ptr,  # [N, H]
    reciprocal_ptr,  # [N] fp32
    eps,
    size,
    BLOCK_H: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_H)
    mask = columns < size
    x = tl.load(hidden_ptr + row * size + columns, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    reciprocal = tl.rsqrt(tl.sum(x * x, axis=0) / size + eps)
    tl.store(reciprocal_ptr + row, reciprocal)
    normed = weight * (x * reciprocal)
    tl.store(normed_ptr + row * size + columns, normed.to(normed_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _rms_norm_backward_kernel(
    grad_ptr,  # [N, H], dY
    hidden_ptr,  # [N, H]
    weight_ptr,  # [H]
    reciprocal_ptr,  # [N] fp32
    grad_hidden_ptr,  # [N, H]
    size,
    BLOCK_H: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_H)
    mask = columns < size
    cells = row * size + columns
    x = tl.load(hidden_ptr + cells, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + cells, mask=mask, other=0.0).to(tl.float32)
    grad *= tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    reciprocal = tl.load(reciprocal_ptr + row)
    unit = x * reciprocal
    mean = tl.sum(grad * unit, axis=0) / size
    grad_hidden = reciprocal * (grad - unit * mean)
    tl.store(grad_hidden_ptr + cells, grad_hidden.to(grad_hidden_ptr.dtype.element_ty), mask=mask)
