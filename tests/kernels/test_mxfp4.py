"""MXFP4: every code and every scale, bit for bit; the merge of an adapter, bit for bit."""

import pytest
import torch
from gptoss_kernels import (
    Mxfp4Weight,
    dequantize,
    dequantize_reference,
    merged_expert_reference,
    quantize,
    quantize_reference,
)
from gptoss_kernels.experts.decode import expert_groups
from gptoss_kernels.experts.projection import ExpertMatrices, ExpertProjection, merged_mxfp4_expert
from gptoss_kernels.testing import make_layer, make_routing

BACKENDS = ["torch", "triton"]
pytestmark = pytest.mark.usefixtures("poisoned_empty")


def same_bits(left, right):
    """Compare bit patterns; any NaN equals any NaN."""
    nan = left.isnan()
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[left.element_size()]
    equal = left.contiguous().view(integer) == right.contiguous().view(integer)
    return bool(torch.equal(nan, right.isnan()) and (equal | nan).all())


def every_byte_at_every_scale(device):
    """Return ``[256, 16, 16]`` blocks that hold all bytes, and ``[256, 16]`` scales."""
    blocks = torch.arange(256, dtype=torch.uint8, device=device).view(1, 16, 16)
    scales = torch.arange(256, dtype=torch.uint8, device=device).view(256, 1)
    return blocks.expand(256, 16, 16).contiguous(), scales.expand(256, 16).contiguous()


@pytest.mark.triton
def test_values_by_hand(device):
    # Codes 0 to 15, low nibble first, at scale 2^1.
    blocks = torch.tensor([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2], device=device)
    scales = torch.tensor([128], dtype=torch.uint8, device=device)
    half = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
    for backend in BACKENDS:
        values = dequantize(blocks.byte(), scales, dtype=torch.float32, backend=backend)
        assert values.tolist() == [2.0 * v for v in half] * 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_decode_every_byte_at_every_scale(backend, dtype, device):
    blocks, scales = every_byte_at_every_scale(device)
    if dtype == torch.bfloat16 and device.type == "cpu":
        # The interpreter's conversion to bf16 loses subnormals, which these two scales give.
        blocks, scales = blocks[2:], scales[2:]
    expected = dequantize_reference(blocks, scales, dtype=dtype)
    assert same_bits(dequantize(blocks, scales, dtype=dtype, backend=backend), expected)
    scratch = torch.empty_like(expected)
    assert dequantize(blocks, scales, out=scratch, backend=backend) is scratch
    assert same_bits(scratch, expected)


def hard_values():
    """Return ``[n, 32]`` rows around ties, saturation, subnormals, zeros of both signs."""
    generator = torch.Generator().manual_seed(3)
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 4.0])
    near = torch.cat(
        (ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, ties - 1), -ties)
    )
    rows = [
        near,
        near * 2.0**-100,
        near * 2.0**100,
        near * 1e-40,
        torch.zeros(32),
        -torch.zeros(32),
    ]
    rows += [torch.randn(32, generator=generator) * 10.0**k for k in range(-30, 31, 4)]
    rows += [torch.full((32,), 7.9999), torch.full((32,), 3.4e38), torch.full((32,), 1.4e-45)]
    return torch.stack([row.float() for row in rows])


@pytest.mark.triton
def test_quantize_bits_equal_the_reference(device):
    values = hard_values().to(device)
    cases = [values, torch.randn((64, 96), device=device)]
    if device.type == "cuda":  # the interpreter refuses bf16
        cases.append(values.clamp(-1e30, 1e30).bfloat16())
    for case in cases:
        expected = quantize_reference(case)
        actual = quantize(case, backend="triton")
        assert torch.equal(actual.blocks, expected.blocks)
        assert torch.equal(actual.scales, expected.scales)


@pytest.mark.triton
def test_quantize_takes_the_nearest_value(device):
    """By brute force: of the 15 values of the block's scale, the nearest; of two, the even one."""
    values = torch.randn((40, 32), device=device)
    packed = quantize(values, backend="triton")
    decoded = dequantize(packed.blocks, packed.scales, dtype=torch.float32)
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], device=device)
    grid = torch.cat((grid, -grid)) * 2.0 ** (packed.scales.float() - 127)
    distance = (values[..., None] - grid[:, None, :]).abs().amin(-1)
    assert torch.equal((values - decoded).abs(), distance)
    amax = values.abs().amax(-1)
    assert torch.equal(packed.scales[:, 0].int() - 127, amax.log2().floor().int() - 2)


@pytest.mark.triton
@pytest.mark.parametrize("packed", [True, False], ids=["mxfp4", "dense"])
@pytest.mark.parametrize("scratch", [10**9, 5000], ids=["one-group", "groups-of-one"])
def test_merge_aware_weights_are_the_exported_ones(packed, scratch, device):
    inputs = make_layer(
        make_routing(4, 1, 3),
        num_experts=3,
        hidden=96,
        intermediate=32,
        rank=5,
        packed=packed,
        device=device,
    )
    for projection in (inputs.gate_up, inputs.down):
        matrices = ExpertMatrices(projection, torch.float32, merged=True)
        groups = [(g.first, g.matrices.clone()) for g in expert_groups(matrices, scratch)]
        stack = torch.cat([matrices for _, matrices in groups])
        assert [first for first, _ in groups] == ([0] if scratch > 5000 else [0, 1, 2])
        for index in range(3):
            weight = projection.weight
            if isinstance(weight, Mxfp4Weight):
                base = dequantize_reference(weight.blocks, weight.scales, dtype=torch.float32)[
                    index
                ]
            else:
                base = weight[index].mT
            merged = merged_expert_reference(
                base, projection.lora_A[index], projection.lora_B[index], projection.scaling
            )
            exported = quantize_reference(merged)
            served = dequantize_reference(exported.blocks, exported.scales, dtype=torch.float32)
            assert same_bits(stack[index], served)
            assert same_bits(merged_mxfp4_expert(projection, index), served)
            assert not torch.equal(served, base)


@pytest.mark.triton
def test_merge_rounds_as_the_export_does_where_the_last_bit_decides(device):
    """Values within a bit of a tie: a sum in another order, or fused, would land on both sides."""
    generator = torch.Generator().manual_seed(1)
    columns, rank, scaling = 2048, 6, 0.7
    b = torch.zeros((1, 32, rank))
    b[:, 0] = torch.rand((rank,), generator=generator) + 0.5
    a = torch.randn((1, rank, columns), generator=generator)
    # The last factor completes s * sum to a tie between two codes, as near as fp32 comes to it.
    partial = torch.einsum("r,rk->k", b[0, 0, :-1].double(), a[0, :-1].double())
    a[0, -1] = ((0.25 / scaling - partial) / b[0, 0, -1].double()).float()
    dense = torch.zeros((1, columns, 32))
    dense[:, ::32] = 4.0  # fixes the scale of each block at 1
    dense[0, ::32, 0] -= (scaling * (b[0, 0] @ a[0]))[::32]
    projection = ExpertProjection(
        dense.to(device), None, a.to(device), b.to(device), scaling=scaling
    )
    merged = merged_expert_reference(dense[0].mT, a[0], b[0], scaling)
    sides = torch.sign(merged[0, 1:32] - 0.25)
    assert {-1.0, 1.0} <= set(sides.tolist())  # both sides of the tie are there
    (group,) = expert_groups(ExpertMatrices(projection, torch.float32, merged=True), 10**9)
    exported = quantize_reference(merged)
    served = dequantize_reference(exported.blocks, exported.scales, dtype=torch.float32)
    assert same_bits(group.matrices[0].cpu(), served)


def test_merged_weight_is_w_plus_s_b_a(device):
    generator = torch.Generator().manual_seed(0)
    weight, a, b = (
        torch.randn(shape, generator=generator).to(device)
        for shape in ((600, 64), (7, 64), (600, 7))
    )
    merged = merged_expert_reference(weight, a, b, 0.37)
    exact = weight.double() + 0.37 * b.double() @ a.double()
    assert (merged.double() - exact).abs().max() < 4e-6
    assert (exact - weight).abs().max() > 1


@pytest.mark.triton
def test_without_an_adapter_merging_changes_no_bit(device):
    inputs = make_layer(
        make_routing(4, 1, 2),
        num_experts=2,
        hidden=64,
        intermediate=32,
        lora=(False, False),
        device=device,
    )
    weight = inputs.gate_up.weight
    plain = dequantize_reference(weight.blocks, weight.scales, dtype=torch.float32)
    matrices = ExpertMatrices(inputs.gate_up, torch.float32, merged=True)
    (group,) = expert_groups(matrices, 10**9)
    assert same_bits(group.matrices, plain)
    assert same_bits(matrices.stack(), plain)


@pytest.mark.triton
def test_mistakes_are_named(device):
    blocks = torch.zeros((2, 3, 16), dtype=torch.uint8, device=device)
    scales = torch.zeros((2, 3), dtype=torch.uint8, device=device)
    with pytest.raises(ValueError, match="needs uint8"):
        dequantize(blocks.int(), scales)
    with pytest.raises(ValueError, match=r"blocks \[..., n, 16\] and scales \[..., n\]"):
        dequantize(blocks, scales[:1])
    with pytest.raises(ValueError, match="contiguous"):
        dequantize(blocks.transpose(0, 1), scales.T, backend="triton")
    with pytest.raises(ValueError, match="out needs to be contiguous with shape"):
        dequantize(blocks, scales, out=torch.zeros(2, 95, device=device))
    for backend in BACKENDS:
        with pytest.raises(ValueError, match="divisible by 32, got 33"):
            quantize(torch.zeros(2, 33, device=device), backend=backend)
        with pytest.raises(ValueError, match="NaN or infinity"):
            quantize(torch.full((1, 32), float("inf"), device=device), backend=backend)
