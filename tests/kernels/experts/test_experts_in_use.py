"""The expert layer as a training loop meets it: memory, checkpointing, precision, mistakes."""

from dataclasses import replace

import pytest
import torch
from gptoss_kernels import ExpertProjection, choose_backend, experts_reference
from gptoss_kernels.backend import interpreted
from gptoss_kernels.experts import experts
from gptoss_kernels.experts.records import KeptExperts
from gptoss_kernels.testing import assert_close, make_layer, make_routing, relative_rms
from torch.utils.checkpoint import checkpoint
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

BACKENDS = ["torch", "triton"]
FLOAT32 = 2e-6
"""As in test_experts.py."""
UNROUNDED = 5e-4
"""Relative RMS of fp32 sums over 2,048 bf16 rows; rounding the sums to bf16 alone is 1.6e-3."""
BF16_RATIO = 1.5
"""Our bf16 error over the error of the plain formula in bf16, both against float64."""


def layer(device="cpu", tokens=24, dtype=torch.float32, **options):
    sizes = {"num_experts": 4, "hidden": 64, "intermediate": 32, "rank": 3} | options
    routing = make_routing(tokens, 2, sizes["num_experts"])
    return make_layer(routing, dtype=dtype, device=device, **sizes)


def all_gradients(out, inputs):
    return torch.autograd.grad(out.square().sum(), list(inputs.leaves().values()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_equals_the_hugging_face_module(dtype):
    """The eager GptOssExperts of transformers with the same dense weights."""
    inputs = layer(dtype=dtype, packed=False, lora=(False, False), tokens=33)
    config = GptOssConfig(num_local_experts=4, hidden_size=64, intermediate_size=32)
    config._experts_implementation = "eager"
    module = GptOssExperts(config).to(dtype)
    with torch.no_grad():
        module.gate_up_proj.copy_(inputs.gate_up.weight)
        module.gate_up_proj_bias.copy_(inputs.gate_up.bias)
        module.down_proj.copy_(inputs.down.weight)
        module.down_proj_bias.copy_(inputs.down.bias)
    module.requires_grad_(False)
    expected = module(inputs.hidden_states, inputs.router_indices, inputs.routing_weights)
    actual = experts(*inputs.arguments())
    tolerance = 1e-12 if dtype == torch.float64 else FLOAT32
    assert_close("out", actual, expected, tolerance)
    for name, ours, theirs in zip(
        inputs.leaves(), all_gradients(actual, inputs), all_gradients(expected, inputs), strict=True
    ):
        assert_close(name, ours, theirs, 10 * tolerance)


def test_bf16_is_no_worse_than_the_plain_formula():
    exact = layer(dtype=torch.float64, tokens=200, hidden=96, intermediate=64)
    single = exact.to(torch.bfloat16)
    # The truth is the float64 result of the very numbers that bf16 holds.
    exact = single.to(torch.float64)
    truth = experts_reference(*exact.arguments())
    probe = torch.randn(truth.shape, generator=torch.Generator().manual_seed(5)).double()
    results = {"truth": (truth, exact)}
    results["plain"] = (experts_reference(*single.arguments()), single)
    results["ours"] = (experts(*single.arguments()), single)
    values = {}
    for name, (out, inputs) in results.items():
        grads = torch.autograd.grad(
            (out * probe.to(out.dtype)).sum(), list(inputs.leaves().values()), retain_graph=True
        )
        values[name] = [out, *grads]
    for label, truth_value, plain, ours in zip(
        ["out", *exact.leaves()], values["truth"], values["plain"], values["ours"], strict=True
    ):
        error, bound = relative_rms(ours, truth_value), relative_rms(plain, truth_value)
        assert error <= BF16_RATIO * bound, f"{label}: {error:.2e} against {bound:.2e}"
        assert 0 < error < 0.05


def test_fp32_factors_beside_bf16_activations():
    """Master weights stay fp32: the product runs in bf16, their gradients are not rounded to it."""
    inputs = layer(dtype=torch.bfloat16)
    factors = {
        n: t.detach().float().requires_grad_() for n, t in inputs.leaves().items() if "." in n
    }
    mixed = replace(
        inputs,
        gate_up=replace(
            inputs.gate_up, lora_A=factors["gate_up.lora_A"], lora_B=factors["gate_up.lora_B"]
        ),
        down=replace(inputs.down, lora_A=factors["down.lora_A"], lora_B=factors["down.lora_B"]),
    )
    rounded = all_gradients(experts(*inputs.arguments()), inputs)
    for (name, leaf), gradient, coarse in zip(
        mixed.leaves().items(),
        all_gradients(experts(*mixed.arguments()), mixed),
        rounded,
        strict=True,
    ):
        assert gradient.dtype == leaf.dtype, name
        assert torch.equal(gradient.to(coarse.dtype), coarse), name
        if "." in name:
            assert not torch.equal(gradient, coarse.float()), name


def test_fp32_gradients_of_factors_are_not_rounded(device):
    """Many rows say the same, so their roundings cancel, and one of the result would stand out."""
    tokens, experts_, hidden, inner, rank = 4096, 2, 64, 32, 3
    generator = torch.Generator().manual_seed(3)

    def draw(*shape, scale=1.0):
        values = scale * torch.randn(shape, generator=generator)
        return values.bfloat16().float().to(device)

    indices = (torch.arange(tokens, device=device) % experts_)[:, None]
    weights = torch.ones((tokens, 1), device=device)
    rows = draw(tokens, hidden)
    first = ExpertProjection(draw(experts_, hidden, 2 * inner, scale=0.2), None)
    # B of one value, so that the rows' gradients <dO, B> are exact and only sums are to be rounded.
    lora_B = torch.full((experts_, hidden, rank), 2.0**-4, device=device)
    second = ExpertProjection(
        draw(experts_, inner, hidden), None, draw(experts_, rank, inner), lora_B, 0.5
    )

    def gradients(dtype, factor_dtype, backend):
        def cast(projection):
            factors = (projection.lora_A, projection.lora_B)
            factors = [t if t is None else t.to(factor_dtype).requires_grad_() for t in factors]
            stack = projection.weight.to(dtype)
            return ExpertProjection(stack, None, *factors, projection.scaling)

        one, two = cast(first), cast(second)
        options = {} if backend is None else {"backend": backend}
        run = experts_reference if backend is None else experts
        out = run(rows.to(dtype), indices, weights.to(dtype), one, two, **options)
        return torch.autograd.grad(out.sum(), (two.lora_A, two.lora_B))

    expected = gradients(torch.float64, torch.float64, None)
    for backend in ("torch", *(["triton"] if device.type == "cuda" else [])):
        actual = gradients(torch.bfloat16, torch.float32, backend)
        for name, ours, truth in zip("AB", actual, expected, strict=True):
            assert ours.dtype == torch.float32
            assert_close(f"d {name}", ours, truth, UNROUNDED)
            assert relative_rms(ours.bfloat16(), truth) > 2 * UNROUNDED, "the bound sees a rounding"


@pytest.mark.parametrize("backend", BACKENDS)
def test_peft_views_give_the_same_numbers(backend, device):
    """PEFT stores A as [E*R, in] and B as [out, R*E]; their views have other strides."""
    inputs = layer(device)
    expected = all_gradients(experts(*inputs.arguments(), backend=backend), inputs)
    stored = {}
    for name in ("gate_up", "down"):
        projection = getattr(inputs, name)
        e, rank, _ = projection.lora_A.shape
        a = projection.lora_A.detach().reshape(e * rank, -1).clone().requires_grad_()
        b = projection.lora_B.detach().permute(1, 2, 0).reshape(-1, rank * e).clone()
        b.requires_grad_()
        stored[name] = (a, b, e, rank)

    def view(name):
        a, b, e, rank = stored[name]
        return replace(
            getattr(inputs, name),
            lora_A=a.view(e, rank, -1),
            lora_B=b.view(-1, rank, e).permute(2, 0, 1),
        )

    out = experts(*inputs.arguments()[:3], view("gate_up"), view("down"), backend=backend)
    leaves = [t for name in ("gate_up", "down") for t in stored[name][:2]]
    a1, b1, a2, b2 = torch.autograd.grad(out.square().sum(), leaves)
    e, rank = stored["down"][2:]
    for got, want in zip(
        (a1.view(e, rank, -1), a2.view(e, rank, -1)), (expected[2], expected[4]), strict=True
    ):
        assert torch.equal(got, want)
    for got, want in zip((b1, b2), (expected[3], expected[5]), strict=True):
        assert torch.equal(got.view(-1, rank, e).permute(2, 0, 1), want)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_checkpointing_changes_no_bit(backend, device):
    inputs = layer(device)
    plain = experts(*inputs.arguments(), backend=backend)

    def run(x):
        return experts(x, *inputs.arguments()[1:], backend=backend)

    again = checkpoint(run, inputs.hidden_states, use_reentrant=False)
    assert torch.equal(plain, again)
    for name, a, b in zip(
        inputs.leaves(), all_gradients(plain, inputs), all_gradients(again, inputs), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.slow
@pytest.mark.parametrize("tile_tokens", [None, 10])
@pytest.mark.parametrize("merge_aware", [False, True], ids=["split", "merge-aware"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_repeated_pass_computes_nothing_and_backward_starts_from_its_input(
    backend, merge_aware, tile_tokens, device, exact_dots
):
    inputs = layer(device)
    options = {"backend": backend, "merge_aware": merge_aware, "tile_tokens": tile_tokens}
    expected = experts(*inputs.arguments(), **options)
    wanted = all_gradients(expected, inputs)
    for keeps_rows in (True, False):
        kept = KeptExperts(keeps_rows=keeps_rows)
        first = experts(*inputs.arguments(), **options, kept=kept)
        assert torch.equal(first, expected)
        rows = kept.rows
        kept.repeated = True
        out = experts(*inputs.arguments(), **options, kept=kept)
        assert out.isnan().all() and (kept.rows is rows is not None) == keeps_rows
        d_out = 2 * expected.detach()  # of the sum of squares, which ``all_gradients`` takes
        leaves = list(inputs.leaves().values())
        assert all(map(torch.equal, torch.autograd.grad(out, leaves, d_out), wanted))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_sorted_again_for_another_choice(backend, device):
    inputs, kept = layer(device), KeptExperts()
    x, indices, *others = inputs.arguments()
    experts(x, indices, *others, backend=backend, kept=kept)
    first = kept.rows
    experts(x, indices, *others, backend=backend, kept=kept)
    assert kept.rows is first and kept.of is indices
    other = (indices + 1) % 4
    out = experts(x, other, *others, backend=backend, kept=kept)
    assert torch.equal(out, experts(x, other, *others, backend=backend))
    assert kept.rows is not first and kept.of is other


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_input_gives_the_same_bits(backend, device):
    inputs = layer(device)
    runs = []
    for _ in range(2):
        out = experts(*inputs.arguments(), backend=backend)
        runs.append((out, *all_gradients(out, inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("recompute", [False, True], ids=["keep-z", "drop-z"])
def test_what_is_kept_for_backward(backend, recompute, device):
    """X, Z, XA, HA, g, indices and the factors; no weight, dense or packed."""
    inputs = layer(device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        experts(*inputs.arguments(), backend=backend, recompute_gate_up=recompute)
    rows, tokens, rank = 48, 24, 3
    sizes = sorted(tensor.numel() for tensor in kept)
    expected = [tokens * 64, 48, rows * rank, rows * rank]  # X, g, XA, HA
    expected += [] if recompute else [rows * 64]  # Z
    expected += [rows, rows, rows, 5]  # the routing
    expected += [t.numel() for n, t in inputs.leaves().items() if "." in n]
    assert sizes == sorted(expected)
    assert not any(tensor.dtype == torch.uint8 for tensor in kept)


def test_nothing_is_kept_without_a_graph():
    inputs = layer()
    with torch.no_grad():
        out = experts(*inputs.arguments())
    assert out.grad_fn is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend, device):
    inputs = layer(device)
    expected = experts(*inputs.arguments(), backend=backend)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = experts(*inputs.arguments(), backend=backend)
        grads = all_gradients(out, inputs)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)
    for ours, plain in zip(grads, all_gradients(expected, inputs), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_tokens(backend, device):
    inputs = layer(device, tokens=0)
    out = experts(*inputs.arguments(), backend=backend)
    assert out.shape == (0, 64)
    for leaf, gradient in zip(inputs.leaves().values(), all_gradients(out, inputs), strict=True):
        assert gradient.shape == leaf.shape
        assert not gradient.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_experts_elsewhere(backend, device):
    inputs = layer(device)
    absent = replace(inputs, router_indices=torch.full_like(inputs.router_indices, 4))
    out = experts(*absent.arguments(), backend=backend)
    assert not out.any()
    assert not any(gradient.any() for gradient in all_gradients(out + 1, absent))


def test_base_tensors_cannot_ask_for_a_gradient():
    inputs = layer(packed=False)
    for name in ("weight", "bias"):
        tensor = getattr(inputs.down, name).detach().clone().requires_grad_()
        with pytest.raises(ValueError, match=f"expert {name} has requires_grad=True"):
            replace(inputs.down, **{name: tensor})


def test_second_derivatives_are_refused():
    inputs = layer()
    (gradient,) = torch.autograd.grad(
        experts(*inputs.arguments()).square().sum(), inputs.hidden_states, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_mistakes_are_named(device):
    good = layer()
    x, indices, g, gate_up, down = good.arguments()
    cases = [
        ((x[:, :32], indices, g, gate_up, down), r"shape \[T, 64\], got \(24, 32\)"),
        ((x.T.contiguous().T, indices, g, gate_up, down), "contiguous rows"),
        ((x.int(), indices, g, gate_up, down), "floating dtype, got torch.int32"),
        ((x, indices.float(), g, gate_up, down), "int32 or int64, got torch.float32"),
        ((x, indices[:, :1], g, gate_up, down), r"one shape \[T, K\]"),
        ((x, indices - 1, g, gate_up, down), "0 or more, got -1"),
        ((x, indices, g.int(), gate_up, down), "floating dtype, got torch.int32"),
        ((x, indices, g, down, gate_up), "down needs"),
        ((x, indices, g.to("meta"), gate_up, down), "on the device of hidden_states"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            experts(*arguments)
    odd = [ExpertProjection(torch.zeros(2, i, o), None) for i, o in ((48, 64), (32, 48))]
    with pytest.raises(ValueError, match="divisible by 32, got 48 and 32"):
        experts(torch.zeros(1, 48), torch.zeros((1, 1), dtype=torch.int64), torch.ones(1, 1), *odd)
    with pytest.raises(ValueError, match="come together"):
        replace(gate_up, lora_B=None)
    with pytest.raises(ValueError, match=r"lora_B needs shape \(4, 64, 3\)"):
        replace(gate_up, lora_B=gate_up.lora_B.detach()[:, :32])
    with pytest.raises(ValueError, match="bias needs shape"):
        replace(gate_up, bias=down.bias[:, :8])


def test_backend_and_engine_mistakes_are_named():
    inputs = layer()
    with pytest.raises(ValueError, match="got 'cuda'"):
        experts(*inputs.arguments(), backend="cuda")
    with pytest.raises(ValueError, match='belongs to backend "triton"'):
        experts(*inputs.arguments(), engine="fused")
    with pytest.raises(ValueError, match="unknown engine 'magic'"):
        experts(*inputs.arguments(), backend="triton", engine="magic")
    with pytest.raises(ValueError, match="bfloat16, float16 or float32, got"):
        experts(*layer(dtype=torch.float64).arguments(), backend="triton")


def test_choose_backend_says_why(caplog):
    caplog.set_level("INFO", logger="gptoss_kernels")
    cpu = torch.device("cpu")
    assert choose_backend("torch", cpu, torch.float32) == "torch"
    assert choose_backend("auto", cpu, torch.bfloat16) == "torch"
    assert choose_backend("auto", cpu, torch.bfloat16) == "torch"
    assert len(caplog.records) <= 1  # once per process
    if interpreted():
        assert choose_backend("triton", cpu, torch.float32) == "triton"
        with pytest.raises(ValueError, match=r"cannot run here: .*interpreter is wrong"):
            choose_backend("triton", cpu, torch.bfloat16)
    else:
        with pytest.raises(ValueError, match="on a CPU and TRITON_INTERPRET=1 was not set"):
            choose_backend("triton", cpu, torch.float32)
    with pytest.raises(ValueError, match="NVIDIA and AMD GPUs, got device meta"):
        choose_backend("triton", torch.device("meta"), torch.float32)
    with pytest.raises(ValueError, match="must be"):
        choose_backend("fastest", cpu, torch.float32)
