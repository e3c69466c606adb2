"""Device code of ``linear_cross_entropy``: one program turns one row of logits into its gradient.

``x = logits / temperature``; C rows of a chunk, V vocabulary.
"""

import triton
import triton.language as tl


@triton.jit
def _tempered(logits, temperature, TEMPERED: tl.constexpr):
    # Divided as samplers do it, and not multiplied by the inverse, which rounds otherwise.
    x = logits.to(tl.float32)
    if TEMPERED:
        x = x / temperature
    return x


@triton.jit
def _write_zeros(row_ptr, columns, BLOCK_V: tl.constexpr):
    offsets = tl.arange(0, BLOCK_V)
    for start in range(0, columns, BLOCK_V):
        zeros = tl.zeros([BLOCK_V], dtype=row_ptr.dtype.element_ty)
        tl.store(row_ptr + start + offsets, zeros, mask=start + offsets < columns)


@triton.jit
def _write_gradient(
    row_ptr,
    target,
    scale,
    loss,
    lse,
    columns,
    z_loss,
    temperature,
    TEMPERED: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    offsets = tl.arange(0, BLOCK_V)
    factor = scale * (1.0 + 2.0 * z_loss * lse)
    # The label's entry from the loss itself: p - 1 after rounding p to bf16 would lose it.
    at_label = factor * tl.exp(-loss) - scale
    if TEMPERED:
        at_label = at_label / temperature
        factor = factor / temperature
    for start in range(0, columns, BLOCK_V):
        column = start + offsets
        mask = column < columns
        x = tl.load(row_ptr + column, mask=mask, other=float("-inf"))
        x = _tempered(x, temperature, TEMPERED)
        gradient = factor * tl.exp(x - lse)
        gradient = tl.where(column == target, at_label, gradient)
        tl.store(row_ptr + column, gradient.to(row_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _cross_entropy_kernel(
    logits_ptr,  # [C, V], overwritten by its gradient when WITH_GRAD
    targets_ptr,  # [C] int64
    scales_ptr,  # [C] fp32; 0: the row carries no loss
    losses_ptr,  # [C] fp32, out
    lse_ptr,  # [C] fp32, out
    entropies_ptr,  # [C] fp32, out when WITH_ENTROPY
    row_stride,
    columns,
    z_loss,
    temperature,
    TEMPERED: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    WITH_ENTROPY: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    scale = tl.load(scales_ptr + row)
    offsets = tl.arange(0, BLOCK_V)
    if scale == 0.0:
        tl.store(losses_ptr + row, 0.0)
        tl.store(lse_ptr + row, 0.0)
        if WITH_ENTROPY:
            tl.store(entropies_ptr + row, 0.0)
        if WITH_GRAD:
            _write_zeros(row_ptr, columns, BLOCK_V)
        return
    target = tl.load(targets_ptr + row)
    inside = (target >= 0) & (target < columns)
    # A label outside the vocabulary makes the loss NaN: it must not read somebody else's memory.
    label_logit = tl.load(row_ptr + target, mask=inside, other=float("nan"))
    label_logit = _tempered(label_logit, temperature, TEMPERED)

    largest = tl.full([BLOCK_V], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_V], dtype=tl.float32)
    for start in range(0, columns, BLOCK_V):
        mask = start + offsets < columns
        x = tl.load(row_ptr + start + offsets, mask=mask, other=float("-inf"))
        x = _tempered(x, temperature, TEMPERED)
        new = tl.maximum(largest, x, propagate_nan=tl.PropagateNan.ALL)
        # A lane that has seen only -inf has no reference point yet, and -inf - -inf is NaN.
        reference = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(largest - reference) + tl.exp(x - reference)
        largest = new
    top = tl.max(largest, axis=0)
    total = total * tl.exp(largest - top)
    lse = top + tl.log(tl.sum(total, axis=0))
    loss = lse - label_logit
    tl.store(losses_ptr + row, loss)
    tl.store(lse_ptr + row, lse)
    if WITH_ENTROPY:
        entropy = tl.zeros([BLOCK_V], dtype=tl.float32)
        for start in range(0, columns, BLOCK_V):
            mask = start + offsets < columns
            x = tl.load(row_ptr + start + offsets, mask=mask, other=float("-inf"))
            x = _tempered(x, temperature, TEMPERED)
            # Of a logit of -inf 0 * inf would be NaN; its share is 0.
            share = tl.exp(x - lse) * (lse - x)
            entropy += tl.where(x == float("-inf"), 0.0, share)
        tl.store(entropies_ptr + row, tl.sum(entropy, axis=0))
    if WITH_GRAD:
        _write_gradient(
            row_ptr, target, scale, loss, lse, columns, z_loss, temperature, TEMPERED, BLOCK_V
        )


@triton.jit
def _cross_entropy_gradient_kernel(
    logits_ptr,  # [C, V], overwritten by its gradient
    targets_ptr,  # [C] int64
    scales_ptr,  # [C] fp32, of any sign; 0: the row has no gradient
    losses_ptr,  # [C] fp32
    lse_ptr,  # [C] fp32
    row_stride,
    columns,
    z_loss,
    temperature,
    TEMPERED: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    scale = tl.load(scales_ptr + row)
    if scale == 0.0:
        _write_zeros(row_ptr, columns, BLOCK_V)
        return
    _write_gradient(
        row_ptr,
        tl.load(targets_ptr + row),
        scale,
        tl.load(losses_ptr + row),
        tl.load(lse_ptr + row),
        columns,
        z_loss,
        temperature,
        TEMPERED,
        BLOCK_V,
    )
