"""The expert layer against autograd of the plain formula, in float64 and below."""

import pytest
import torch
from gptoss_kernels import experts_reference
from gptoss_kernels.experts import experts
from gptoss_kernels.testing import LayerInputs, assert_close, make_layer, make_routing

FLOAT64 = 1e-12
"""Relative RMS; both sides are float64 and differ in the order of sums only."""
FLOAT32 = 2e-6
"""Sums of at most 128 products in float32; measured 2e-7 to 6e-7 on these shapes."""
pytestmark = pytest.mark.usefixtures("poisoned_empty")


def gradients_of(function, inputs, **options):
    """Return the output and every gradient of a random linear functional of it."""
    out = function(*inputs.arguments(), **options)
    generator = torch.Generator().manual_seed(99)
    probe = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    leaves = inputs.leaves()
    grads = torch.autograd.grad((out * probe).sum(), list(leaves.values()))
    return {"out": out, **{f"d {k}": g for k, g in zip(leaves, grads, strict=True)}}


def check(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(name, actual[name].cpu(), value.cpu(), tolerance)


NAMES = ("tokens", "top_k", "num_experts", "hidden", "intermediate", "rank", "kind")
SHAPES = [
    pytest.param(1, 4, 8, 64, 32, 4, "random", id="one-token"),
    pytest.param(7, 4, 8, 64, 96, 4, "random", id="fewer-tokens-than-a-tile"),
    pytest.param(33, 2, 5, 32, 64, 3, "random", id="odd-sizes"),
    pytest.param(40, 2, 8, 64, 32, 4, "first", id="last-experts-empty"),
    pytest.param(40, 2, 8, 64, 32, 4, "last", id="first-experts-empty"),
    pytest.param(40, 2, 8, 64, 32, 4, "ends", id="middle-experts-empty"),
    pytest.param(64, 1, 6, 64, 32, 4, "first", id="all-on-one-expert"),
    pytest.param(10, 4, 4, 32, 32, 2, "random", id="k-equals-e"),
    pytest.param(3, 8, 10, 32, 32, 2, "random", id="k-8"),
    pytest.param(5, 1, 1, 32, 32, 2, "random", id="one-expert"),
    pytest.param(4, 2, 128, 32, 32, 2, "random", id="128-experts", marks=pytest.mark.slow),
]


def layer_of(tokens, top_k, num_experts, hidden, intermediate, rank, kind, **options):
    routing = make_routing(tokens, top_k, num_experts, kind=kind)
    sizes = {"num_experts": num_experts, "hidden": hidden, "intermediate": intermediate}
    return make_layer(routing, rank=rank, dtype=torch.float64, **sizes, **options)


def small(**options):
    return layer_of(24, 2, 4, 64, 32, 3, "random", **options)


def on(device, inputs, dtype=torch.float32) -> LayerInputs:
    """Move a float64 layer to the device that Triton runs on."""
    return inputs.to(dtype, device)


@pytest.mark.parametrize(NAMES, SHAPES)
@pytest.mark.parametrize("packed", [True, False], ids=["mxfp4", "dense"])
def test_torch_equals_float64_autograd(
    tokens, top_k, num_experts, hidden, intermediate, rank, kind, packed
):
    inputs = layer_of(tokens, top_k, num_experts, hidden, intermediate, rank, kind, packed=packed)
    expected = gradients_of(experts_reference, inputs)
    check(gradients_of(experts, inputs), expected, FLOAT64)
    check(gradients_of(experts, inputs.to(torch.float32)), expected, FLOAT32)


@pytest.mark.triton
@pytest.mark.parametrize(NAMES, SHAPES)
def test_triton_equals_float64_autograd(
    tokens, top_k, num_experts, hidden, intermediate, rank, kind, device
):
    inputs = layer_of(tokens, top_k, num_experts, hidden, intermediate, rank, kind)
    expected = gradients_of(experts_reference, inputs)
    check(gradients_of(experts, on(device, inputs), backend="triton"), expected, FLOAT32)


MODES = [
    pytest.param({"packed": False}, {}, id="dense"),
    pytest.param({"bias": False}, {}, id="no-bias"),
    pytest.param({"lora": (False, True)}, {}, id="lora-on-down"),
    pytest.param({"lora": (True, False)}, {}, id="lora-on-gate-up"),
    pytest.param({"lora": (False, False)}, {}, id="no-lora"),
    pytest.param({"lora": (False, False), "bias": False}, {}, id="no-lora-no-bias"),
    pytest.param({}, {"recompute_gate_up": True}, id="recompute"),
]
TRITON_MODES = [
    *MODES,
    pytest.param({}, {"engine": "packed"}, id="decode-in-the-loop"),
    pytest.param({"bias": False, "lora": (False, True)}, {"engine": "packed"}, id="packed-mixed"),
    pytest.param({}, {"scratch_bytes": 20_000}, id="groups-of-experts"),
    pytest.param({}, {"engine": "grouped_mm"}, id="grouped-mm"),
    pytest.param({"packed": False, "bias": False}, {"engine": "grouped_mm"}, id="grouped-mm-dense"),
]


@pytest.mark.parametrize(("layer", "options"), MODES)
def test_torch_modes(layer, options):
    inputs = small(**layer)
    check(
        gradients_of(experts, inputs, **options), gradients_of(experts_reference, inputs), FLOAT64
    )


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize(("layer", "options"), TRITON_MODES)
def test_triton_modes(layer, options, device):
    if options.get("engine") == "grouped_mm" and device.type == "cuda":
        pytest.skip("torch's grouped product takes bf16 on a GPU: see test_gpu_bf16")
    inputs = small(**layer)
    expected = gradients_of(experts_reference, inputs)
    options = {"engine": "fused"} | options
    actual = gradients_of(experts, on(device, inputs), backend="triton", **options)
    check(actual, expected, FLOAT32)


def test_gradcheck():
    inputs = layer_of(4, 2, 3, 32, 32, 2, "random")
    gate_up, down = inputs.gate_up, inputs.down

    def function(x, g, a1, b1, a2, b2):
        pairs = [(gate_up, a1, b1), (down, a2, b2)]
        first, second = (_with_factors(p, a, b) for p, a, b in pairs)
        return experts(x, inputs.router_indices, g, first, second)

    assert torch.autograd.gradcheck(function, tuple(inputs.leaves().values()), fast_mode=True)


def _with_factors(projection, lora_A, lora_B):
    return type(projection)(projection.weight, projection.bias, lora_A, lora_B, projection.scaling)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_one_tensor_at_a_time_wants_a_gradient(backend, device):
    """Each gradient is the same whether the others are asked for or not."""
    inputs = on(device, layer_of(12, 1, 2, 32, 32, 3, "random"))
    everything = gradients_of(experts, inputs, backend=backend)
    for name, leaf in inputs.leaves().items():
        for other in inputs.leaves().values():
            other.requires_grad_(other is leaf)
        out = experts(*inputs.arguments(), backend=backend)
        generator = torch.Generator().manual_seed(99)
        probe = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
        (gradient,) = torch.autograd.grad((out * probe).sum(), [leaf])
        assert torch.equal(gradient, everything[f"d {name}"]), name


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("packed", [True, False], ids=["mxfp4", "dense"])
def test_merge_aware_runs_on_the_exported_weights(backend, packed, device):
    """Forward and the gradients of x and g are those of the merged layer without an adapter;
    those of A and B are the chain rule through W + s B A at the gradient of the merged weight."""
    inputs = on(device, small(packed=packed))
    actual = gradients_of(experts, inputs, backend=backend, merge_aware=True)
    from gptoss_kernels.experts.projection import merged_mxfp4_expert

    dense, merged = {}, {}
    for name in ("gate_up", "down"):
        projection = getattr(inputs, name)
        stack = torch.stack([merged_mxfp4_expert(projection, e) for e in range(4)]).detach()
        dense[name] = stack.cpu().double().requires_grad_()
        merged[name] = stack
    x, g = (t.detach().cpu().double().requires_grad_() for t in inputs.arguments()[::2][:2])
    out = _plain(x, inputs.router_indices.cpu(), g, dense, inputs)
    generator = torch.Generator().manual_seed(99)
    probe = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    d_x, d_g, d_first, d_second = torch.autograd.grad(
        (out * probe).sum(), [x, g, dense["gate_up"], dense["down"]]
    )
    expected = {"out": out, "d hidden_states": d_x, "d routing_weights": d_g}
    for name, gradient in (("gate_up", d_first), ("down", d_second)):
        projection = getattr(inputs, name)
        a, b = (t.detach().cpu().double() for t in (projection.lora_A, projection.lora_B))
        expected[f"d {name}.lora_A"] = projection.scaling * b.mT @ gradient
        expected[f"d {name}.lora_B"] = projection.scaling * gradient @ a.mT
    check(actual, expected, FLOAT32)


def _plain(x, indices, g, dense, inputs):
    from gptoss_kernels import swiglu_reference

    out = 0
    for choice in range(indices.shape[1]):
        e = indices[:, choice]
        biases = (inputs.gate_up.bias.cpu().double()[e], inputs.down.bias.cpu().double()[e])
        pre = torch.einsum("th,toh->to", x, dense["gate_up"][e]) + biases[0]
        rows = torch.einsum("ti,toi->to", swiglu_reference(pre), dense["down"][e]) + biases[1]
        out = out + g[:, choice, None] * rows
    return out


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_expert_shards_add_up_to_the_layer(backend, device):
    """Uneven shards: each rank holds some experts, marks the rest as absent; ranks are added."""
    inputs = on(device, layer_of(12, 2, 5, 32, 32, 3, "random"))
    whole = gradients_of(experts, inputs, backend=backend)
    parts = []
    for first, last in [(0, 3), (3, 4), (4, 5)]:
        indices = inputs.router_indices
        local = torch.where((indices >= first) & (indices < last), indices - first, 99)
        shard = LayerInputs(
            inputs.hidden_states,
            local,
            inputs.routing_weights,
            _shard(inputs.gate_up, first, last),
            _shard(inputs.down, first, last),
        )
        parts.append(gradients_of(experts, shard, backend=backend))
    for name in ("out", "d hidden_states", "d routing_weights"):
        assert_close(name, sum(part[name] for part in parts), whole[name], FLOAT32)
    for name in ("gate_up.lora_A", "gate_up.lora_B", "down.lora_A", "down.lora_B"):
        joined = torch.cat([part[f"d {name}"] for part in parts])
        assert_close(name, joined, whole[f"d {name}"], FLOAT32)


def _shard(projection, first, last):
    from gptoss_kernels import Mxfp4Weight

    part = slice(first, last)
    weight = Mxfp4Weight(projection.weight.blocks[part], projection.weight.scales[part])
    return type(projection)(
        weight,
        projection.bias[part],
        projection.lora_A.detach()[part].requires_grad_(),
        projection.lora_B.detach()[part].requires_grad_(),
        projection.scaling,
    )
