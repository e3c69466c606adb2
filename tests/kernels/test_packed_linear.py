"""Packed linear layers and their loss against float64 autograd through the decoded weight."""

import pytest
import torch
from gptoss_kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from gptoss_kernels.packed_linear import (
    INT8_BLOCK,
    TILE_ROWS,
    Int8Weight,
    PackedWeight,
    packed_linear,
    quantize_int8,
)

FP32_TOLERANCE = 2e-6  # relative RMS; measured <= 9.5e-7 over these cases on a CPU


def relative_rms(actual, expected):
    expected = expected.double()
    scale = expected.square().mean().sqrt()
    assert scale > 0, "the reference is all zero: nothing would be compared"
    return ((actual.double() - expected).square().mean().sqrt() / scale).item()


def drawn(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def decoded_reference(packed):
    """Return the weight in float64, each value by the formula."""
    scales = packed.scales.double().repeat_interleave(INT8_BLOCK, dim=1)
    return packed.values.double() * scales


def test_a_value_decodes_to_steps_of_its_own_blocks_scale():
    weight = drawn(6, 3 * INT8_BLOCK)
    weight[1] *= 100  # rows and blocks of other sizes: a scale off by one shows
    weight[3, INT8_BLOCK : 2 * INT8_BLOCK] *= 1e-3
    weight[4, :INT8_BLOCK] = 0
    packed = quantize_int8(weight)
    assert isinstance(packed, PackedWeight)
    assert packed.values.dtype == torch.int8 and packed.scales.dtype == torch.bfloat16
    assert tuple(packed.scales.shape) == (6, 3) and packed.nbytes == 6 * (3 * INT8_BLOCK + 3 * 2)
    assert torch.equal(packed.rows(0, 6).double(), decoded_reference(packed))
    assert torch.equal(packed.rows(2, 5), packed.rows(0, 6)[2:5])
    blocks = weight.view(6, 3, INT8_BLOCK)
    error = (packed.rows(0, 6) - weight).view_as(blocks).abs().amax(2)
    step = blocks.abs().amax(2) / 127
    assert (error <= 0.76 * step).all(), "half a step, and a quarter where bf16 rounded the scale"
    assert (packed.rows(4, 5)[0, :INT8_BLOCK] == 0).all()


def test_a_row_that_64_does_not_divide_has_smaller_blocks():
    packed = quantize_int8(drawn(4, 96))
    assert tuple(packed.scales.shape) == (4, 3)
    expected = packed.values.double() * packed.scales.double().repeat_interleave(32, dim=1)
    assert torch.equal(packed.rows(1, 3).double(), expected[1:3])


def test_packing_what_was_packed_changes_nothing():
    once = quantize_int8(drawn(5, 2 * INT8_BLOCK, dtype=torch.bfloat16))
    exact = Int8Weight(once.values, once.scales, torch.float32)
    assert torch.equal(quantize_int8(exact.rows(0, 5)).rows(0, 5), exact.rows(0, 5))


@pytest.mark.parametrize("outputs", [40, TILE_ROWS + 3], ids=["one tile", "a tile and 3 rows"])
@pytest.mark.parametrize("bias", [None, True], ids=["no bias", "bias"])
def test_forward_and_gradient_are_those_of_the_decoded_weight(outputs, bias, poisoned_empty):
    packed = quantize_int8(drawn(outputs, INT8_BLOCK))
    added = None if bias is None else drawn(outputs, seed=1)
    x = drawn(2, 5, INT8_BLOCK, seed=2).requires_grad_()
    wide = x.detach().double().requires_grad_()
    expected = wide @ decoded_reference(packed).T + (0 if added is None else added.double())
    grad = drawn(2, 5, outputs, seed=3)
    expected.backward(grad.double())
    actual = packed_linear(x, packed, added)
    actual.backward(grad)
    assert actual.dtype == torch.float32 and actual.shape == (2, 5, outputs)
    assert relative_rms(actual, expected.detach()) < FP32_TOLERANCE
    assert relative_rms(x.grad, wide.grad) < FP32_TOLERANCE


def test_one_tile_in_bf16_is_torchs_linear_to_the_bit():
    packed = quantize_int8(drawn(48, 2 * INT8_BLOCK, dtype=torch.bfloat16))
    bias = drawn(48, seed=1, dtype=torch.bfloat16)
    results = []
    for apply in (
        lambda x: packed_linear(x, packed, bias),
        lambda x: torch.nn.functional.linear(x, packed.rows(0, 48), bias),
    ):
        x = drawn(7, 2 * INT8_BLOCK, seed=2, dtype=torch.bfloat16).requires_grad_()
        y = apply(x)
        y.backward(drawn(7, 48, seed=3, dtype=torch.bfloat16))
        results.append((y.detach(), x.grad))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def problem(vocabulary, dtype=torch.float32):
    hidden = drawn(19, INT8_BLOCK, seed=4, dtype=dtype)
    head = drawn(vocabulary, INT8_BLOCK, seed=5, dtype=dtype) * 0.25
    head[::7] *= 3  # rows of other sizes: a scale of the next row shows
    generator = torch.Generator().manual_seed(6)
    labels = torch.randint(0, vocabulary, (19,), generator=generator)
    weights = torch.rand(19, generator=generator) + 0.1
    weights[3], labels[5] = 0, -100
    return hidden, quantize_int8(head), labels, weights


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("vocabulary", [101, TILE_ROWS + 5], ids=["one tile", "a tile and 5 rows"])
def test_loss_and_gradient_equal_float64_of_the_decoded_head(
    vocabulary, backend, device, poisoned_empty
):
    hidden, head, labels, weights = problem(vocabulary)
    labels[0] = vocabulary - 1
    wide = hidden.double().requires_grad_()
    total, losses = linear_cross_entropy_reference(
        wide, decoded_reference(head), labels, weights.double(), z_loss=1e-3
    )
    total.backward()
    head = Int8Weight(head.values.to(device), head.scales.to(device), head.dtype)
    hidden = hidden.to(device).requires_grad_()
    actual, actual_losses = linear_cross_entropy(
        hidden,
        head,
        labels.to(device),
        weights.to(device),
        chunk_rows=8,
        z_loss=1e-3,
        backend=backend,
    )
    (actual * 0.5).backward()
    assert relative_rms(actual, total.detach()) < FP32_TOLERANCE
    assert relative_rms(actual_losses, losses) < FP32_TOLERANCE
    assert relative_rms(hidden.grad, wide.grad * 0.5) < FP32_TOLERANCE


def test_bf16_loss_is_no_worse_than_with_the_decoded_head_as_it_is():
    hidden, head, labels, weights = problem(2 * TILE_ROWS, torch.bfloat16)
    wide = hidden.double().requires_grad_()
    decoded = head.rows(0, 2 * TILE_ROWS)
    total, _ = linear_cross_entropy_reference(wide, decoded.double(), labels, weights.double())
    total.backward()
    grads = []
    for weight in (head, decoded):
        own = hidden.clone().requires_grad_()
        linear_cross_entropy(own, weight, labels, weights)[0].backward()
        grads.append(relative_rms(own.grad, wide.grad))
    assert grads[0] <= 1.5 * grads[1]


def test_nothing_of_the_head_is_kept_for_the_backward_pass():
    packed = quantize_int8(drawn(TILE_ROWS + 1, INT8_BLOCK))
    kept = []
    x = drawn(3, INT8_BLOCK, seed=2).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        packed_linear(x, packed)
    assert kept == []


def test_mistakes_are_named():
    weight = drawn(4, INT8_BLOCK)
    for wrong in (weight[:, :63], weight[0], weight.to(torch.int8)):
        with pytest.raises(ValueError, match=r"H a multiple of 16.*leave this one in bf16"):
            quantize_int8(wrong)
    weight[2, 5] = float("inf")
    with pytest.raises(ValueError, match=r"finite values.*rows 0 to 3"):
        quantize_int8(weight)
    packed = quantize_int8(drawn(4, INT8_BLOCK))
    with pytest.raises(ValueError, match=r"x \[..., 64\]"):
        packed_linear(drawn(2, 65), packed)
    with pytest.raises(ValueError, match="freeze it"):
        packed_linear(drawn(2, INT8_BLOCK), packed, drawn(4).requires_grad_())
    with pytest.raises(ValueError, match="one floating dtype"):
        linear_cross_entropy(
            drawn(2, 64, dtype=torch.bfloat16), packed, torch.zeros(2).long(), torch.ones(2)
        )
