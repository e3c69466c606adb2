"""What only a GPU can show: bf16 on real shapes, every engine, no waiting for the device."""

import pytest
import torch
from gptoss_kernels import dequantize, dequantize_reference, experts
from gptoss_kernels.testing import assert_close, make_layer, make_routing, relative_rms

BF16 = 1.2e-2
"""Relative RMS of bf16 operands against fp32: three roundings of 2^-9 each, summed with room."""
pytestmark = pytest.mark.gpu


def gradients_of(inputs, **options):
    out = experts(*inputs.arguments(), **options)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out)
    leaves = inputs.leaves()
    grads = torch.autograd.grad(out, list(leaves.values()), probe)
    return {"out": out, **dict(zip(leaves, grads, strict=True))}


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
    inputs = make_layer(
        make_routing(tokens, 4, num_experts, kind=kind),
        num_experts=num_experts,
        hidden=2880,
        intermediate=2880,
        rank=rank,
        dtype=torch.bfloat16,
        device="cuda",
    )
    expected = gradients_of(inputs.to(torch.float32, "cuda"))
    actual = gradients_of(inputs, backend="triton", engine=engine)
    for name, value in expected.items():
        assert_close(name, actual[name], value, BF16)


def test_engines_agree_and_fp16_works():
    inputs = make_layer(
        make_routing(256, 4, 16), num_experts=16, hidden=256, intermediate=512, rank=8
    )
    expected = gradients_of(inputs.to(torch.float32, "cuda"))
    for name, value in gradients_of(inputs.to(torch.float16, "cuda"), backend="triton").items():
        assert_close(name, value, expected[name], BF16)


def test_decode_of_a_large_stack_is_bit_exact():
    blocks = torch.randint(0, 256, (4, 5760, 90, 16), dtype=torch.uint8, device="cuda")
    scales = torch.randint(0, 255, (4, 5760, 90), dtype=torch.uint8, device="cuda")
    expected = dequantize_reference(blocks, scales)
    assert torch.equal(dequantize(blocks, scales, backend="triton"), expected)


def test_the_host_never_waits():
    inputs = make_layer(
        make_routing(64, 4, 8), num_experts=8, hidden=64, intermediate=64, device="cuda"
    )
    gradients_of(inputs, backend="triton")
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
