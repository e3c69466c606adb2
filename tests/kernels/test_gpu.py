"""What only a GPU can show: bf16 on real shapes, every engine, no waiting for the device."""

import pytest
import torch
from gptoss_kernels import dequantize, dequantize_reference, swiglu, swiglu_reference
from gptoss_kernels.experts import experts
from gptoss_kernels.testing import (
    BF16_ERRORS,
    BF16_ROOM,
    assert_close,
    below_the_clamp,
    beyond_the_clamp,
    bf16_faults,
    make_layer,
    make_routing,
    outputs_and_gradients,
    relative_rms,
)

FP16 = BF16_ROOM * max(BF16_ERRORS.values()) / 8
"""Three bits more than bf16."""
NO_CLAMP = ("out", "routing_weights", "down.lora_A", "down.lora_B")
"""What no gradient of a clamp reaches."""
pytestmark = pytest.mark.gpu


def released(tokens, num_experts, rank, kind="random"):
    return make_layer(
        make_routing(tokens, 4, num_experts, kind=kind),
        num_experts=num_experts,
        hidden=2880,
        intermediate=2880,
        rank=rank,
        dtype=torch.bfloat16,
        device="cuda",
    )


@pytest.mark.parametrize("engine", ["fused", "grouped_mm", "packed"])
@pytest.mark.parametrize(
    ("tokens", "num_experts", "rank", "kind"),
    [
        pytest.param(1, 8, 16, "random", id="one-token"),
        pytest.param(777, 32, 16, "random", id="20b"),
        pytest.param(512, 128, 64, "random", id="120b-rank-64"),
        pytest.param(300, 8, 128, "ends", id="empty-experts-rank-128"),
    ],
)
def test_real_shapes_in_bf16(engine, tokens, num_experts, rank, kind):
    inputs = below_the_clamp(released(tokens, num_experts, rank, kind))
    expected = outputs_and_gradients(inputs.to(torch.float32, "cuda"))
    actual = outputs_and_gradients(inputs, backend="triton", engine=engine)
    assert not bf16_faults(actual, expected)


@pytest.mark.parametrize("engine", ["fused", "grouped_mm", "packed"])
def test_clamps_that_no_rounding_decides(engine):
    inputs = beyond_the_clamp(released(300, 8, 16))
    expected = outputs_and_gradients(inputs.to(torch.float32, "cuda"))
    actual = outputs_and_gradients(inputs, backend="triton", engine=engine)
    assert not bf16_faults(actual, expected)


def test_trained_scale_where_no_gradient_passes_a_clamp():
    inputs = released(300, 8, 16)
    expected = outputs_and_gradients(inputs.to(torch.float32, "cuda"))
    actual = outputs_and_gradients(inputs, backend="triton")
    for name in NO_CLAMP:
        assert_close(name, actual[name], expected[name], BF16_ROOM * BF16_ERRORS[name])


def test_the_clamp_by_itself_on_the_kernels_own_pre_activations():
    """Both sides get the same bf16 values, some of them exactly on the bound."""
    drawn = 5 * torch.randn((300, 5760), device="cuda")
    drawn[:, :8] = torch.tensor([7.0, -7.0, 7.03125, 6.96875], device="cuda").repeat(2)
    actual = drawn.bfloat16().requires_grad_()
    expected = actual.detach().double().requires_grad_()
    out, truth = swiglu(actual, backend="triton"), swiglu_reference(expected)
    probe = torch.randn(out.shape, device="cuda").bfloat16()
    (grad,) = torch.autograd.grad(out, actual, probe)
    (true_grad,) = torch.autograd.grad(truth, expected, probe.double())
    assert torch.equal(grad == 0, true_grad == 0)
    assert_close("activation", out, truth, 2.0**-8)
    assert_close("gradient", grad, true_grad, 2.0**-8)


@pytest.mark.parametrize("engine", ["fused", "grouped_mm", "packed"])
def test_the_same_bits_twice(engine):
    inputs = released(777, 32, 16)
    first, second = (
        outputs_and_gradients(inputs, backend="triton", engine=engine) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fp16_works():
    inputs = make_layer(
        make_routing(256, 4, 16), num_experts=16, hidden=256, intermediate=512, rank=8
    ).to(torch.float16, "cuda")
    expected = outputs_and_gradients(below_the_clamp(inputs).to(torch.float32, "cuda"))
    for name, value in outputs_and_gradients(inputs, backend="triton").items():
        assert_close(name, value, expected[name], FP16)


def test_decode_of_a_large_stack_is_bit_exact():
    blocks = torch.randint(0, 256, (4, 5760, 90, 16), dtype=torch.uint8, device="cuda")
    scales = torch.randint(0, 255, (4, 5760, 90), dtype=torch.uint8, device="cuda")
    expected = dequantize_reference(blocks, scales)
    assert torch.equal(dequantize(blocks, scales, backend="triton"), expected)


def test_the_host_never_waits():
    inputs = make_layer(
        make_routing(64, 4, 8), num_experts=8, hidden=64, intermediate=64, device="cuda"
    )
    outputs_and_gradients(inputs, backend="triton")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = experts(*inputs.arguments(), backend="triton")
        torch.autograd.grad(out, list(inputs.leaves().values()), out.detach())
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_more_than_2_to_31_elements():
    """Z has 2.3e9 elements; the last rows are as right as the first."""
    tokens = 100_000
    inputs = make_layer(
        make_routing(tokens, 4, 4, kind="first"),
        num_experts=4,
        hidden=32,
        intermediate=2880,
        dtype=torch.bfloat16,
        device="cuda",
    )
    with torch.no_grad():
        whole = experts(*inputs.arguments(), backend="triton", engine="fused")
        x, indices, weights, gate_up, down = inputs.arguments()
        last = slice(tokens - 500, tokens)
        part = experts(
            x[last], indices[last], weights[last], gate_up, down, backend="triton", engine="fused"
        )
    assert relative_rms(whole[last], part) < 1e-3
