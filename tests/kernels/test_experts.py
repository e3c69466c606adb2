"""The expert layer against autograd of the plain formula, in float64 and below."""

import pytest
import torch
from gptoss_kernels import experts, experts_reference
from gptoss_kernels.testing import assert_close, make_layer, make_routing

FLOAT64 = 1e-12
"""Relative RMS; both sides are float64 and differ in the order of sums only."""
FLOAT32 = 2e-6
"""Sums of at most 128 products in float32; measured 2e-7 to 6e-7 on these shapes."""


def gradients_of(function, inputs, **options):
    """Return the output and every gradient of a random linear functional of it."""
    out = function(*inputs.arguments(), **options)
    generator = torch.Generator().manual_seed(99)
    probe = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    leaves = inputs.leaves()
    grads = torch.autograd.grad((out * probe).sum(), list(leaves.values()))
    return {"out": out, **{f"d {k}": g for k, g in zip(leaves, grads, strict=True)}}


NAMES = ("tokens", "top_k", "num_experts", "hidden", "intermediate", "rank", "kind")
SHAPES = [
    pytest.param(1, 4, 8, 64, 32, 4, "random", id="one-token"),
    pytest.param(7, 4, 8, 64, 96, 4, "random", id="fewer-tokens-than-a-tile"),
    pytest.param(33, 2, 5, 32, 64, 3, "random", id="odd-sizes"),
    pytest.param(40, 2, 8, 64, 32, 4, "first", id="first-experts-only"),
    pytest.param(40, 2, 8, 64, 32, 4, "last", id="first-experts-empty"),
    pytest.param(40, 2, 8, 64, 32, 4, "ends", id="middle-experts-empty"),
    pytest.param(64, 1, 6, 64, 32, 4, "first", id="all-on-one-expert"),
    pytest.param(10, 4, 4, 32, 32, 2, "random", id="k-equals-e"),
    pytest.param(9, 8, 16, 32, 32, 2, "random", id="k-8"),
    pytest.param(5, 1, 1, 32, 32, 2, "random", id="one-expert"),
    pytest.param(6, 3, 128, 32, 32, 2, "random", id="128-experts"),
]


@pytest.mark.parametrize(NAMES, SHAPES)
@pytest.mark.parametrize("packed", [True, False], ids=["mxfp4", "dense"])
def test_torch_equals_float64_autograd(
    tokens, top_k, num_experts, hidden, intermediate, rank, kind, packed
):
    inputs = make_layer(
        make_routing(tokens, top_k, num_experts, kind=kind),
        num_experts=num_experts,
        hidden=hidden,
        intermediate=intermediate,
        rank=rank,
        packed=packed,
        dtype=torch.float64,
    )
    expected = gradients_of(experts_reference, inputs)
    actual = gradients_of(experts, inputs)
    for name, value in expected.items():
        assert_close(name, actual[name], value, FLOAT64)
    single = gradients_of(experts, inputs.to(torch.float32))
    for name, value in expected.items():
        assert_close(name, single[name], value, FLOAT32)
