"""The expert layer in tiles of tokens: the bits of the whole call, its sums in another order."""

import pytest
import torch
from gptoss_kernels import experts_reference
from gptoss_kernels.experts import decode, experts, products, tiled
from gptoss_kernels.experts.records import KeptExperts
from gptoss_kernels.testing import assert_close, make_layer, make_routing

BACKENDS = ["torch", "triton"]
TOKENS = 23
FLOAT32 = 2e-6
"""As in test_experts.py, against float64."""
pytestmark = pytest.mark.usefixtures("poisoned_empty")


def layer(device="cpu", dtype=torch.float32, kind="random", **options):
    sizes = {"num_experts": 4, "hidden": 64, "intermediate": 32, "rank": 3} | options
    routing = make_routing(TOKENS, 2, sizes["num_experts"], kind=kind)
    return make_layer(routing, dtype=dtype, device=device, **sizes)


def computed(inputs, **options):
    """Return the output and the gradients of a random linear functional, by name."""
    out = experts(*inputs.arguments(), **options)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(99)).to(out)
    leaves = inputs.leaves()
    grads = torch.autograd.grad((out * probe).sum(), list(leaves.values()))
    return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}


def bound(inputs, **options):
    """Return the bound of ``tiled`` by factor: 2 M 2^-24 of the sum of the tokens' magnitudes."""
    names = [name for name in inputs.leaves() if "." in name]
    if not names:
        return {}
    x, indices, weights, *rest = inputs.arguments()
    probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(99)).to(x)
    total = dict.fromkeys(names, 0.0)
    for token in range(TOKENS):
        one = slice(token, token + 1)
        out = experts(x[one], indices[one], weights[one], *rest, **options)
        leaves = [inputs.leaves()[name] for name in names]
        grads = torch.autograd.grad((out * probe[one]).sum(), leaves)
        total = {n: total[n] + grad.abs() for n, grad in zip(names, grads, strict=True)}
    # An expert has a row of each token at most.
    return {n: 2 * TOKENS * 2.0**-24 * magnitude for n, magnitude in total.items()}


MODES = [
    pytest.param({}, {}, id="plain"),
    pytest.param({}, {"recompute_gate_up": True}, id="selective"),
    pytest.param({}, {"merge_aware": True}, id="merge-aware"),
    pytest.param({}, {"merge_aware": True, "recompute_gate_up": True}, id="merge-aware-selective"),
    pytest.param({"packed": False}, {}, id="dense"),
    pytest.param({"lora": (False, True), "bias": False}, {}, id="lora-on-down"),
    pytest.param({"lora": (True, False)}, {}, id="lora-on-gate-up"),
    pytest.param({"lora": (False, False)}, {}, id="no-lora"),
    pytest.param({"kind": "ends"}, {}, id="experts-without-rows"),
]
QUICK = ("plain",)
ENGINES = [
    pytest.param({}, {"engine": "packed"}, id="decode-in-the-loop"),
    pytest.param({}, {"scratch_bytes": 20_000}, id="groups-of-experts"),
]


@pytest.mark.parametrize("tile_tokens", [1, 8, 22, 23, 1000])
@pytest.mark.parametrize(("sizes", "options"), MODES)
def test_torch_tiles_equal_the_whole_call(sizes, options, tile_tokens):
    """To the last digits of float64: BLAS multiplies few rows by other kernels than many."""
    inputs = layer(dtype=torch.float64, **sizes)
    whole = computed(inputs, **options)
    for name, part in computed(inputs, tile_tokens=tile_tokens, **options).items():
        assert_close(name, part, whole[name], 0 if tile_tokens >= TOKENS else 1e-13)


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        pytest.param(*mode.values, id=mode.id, marks=[pytest.mark.slow] * (mode.id not in QUICK))
        for mode in (*MODES, *ENGINES)
    ],
)
def test_triton_tiles_have_the_bits_of_the_whole_call(sizes, options, device, exact_dots):
    inputs, options = layer(device, **sizes), {"backend": "triton", "engine": "fused"} | options
    whole, allowed = computed(inputs, **options), bound(inputs, **options)
    for name, part in computed(inputs, tile_tokens=8, **options).items():
        if name in allowed:
            assert ((part - whole[name]).abs() <= allowed[name]).all(), name
            assert_close(name, part, whole[name], FLOAT32)
        else:
            assert torch.equal(part, whole[name]), name


@pytest.mark.triton
@pytest.mark.slow
def test_torch_s_grouped_product_in_tiles(device):
    if device.type == "cuda":
        pytest.skip("torch's grouped product takes bf16 on a GPU: see test_gpu_bf16")
    inputs, options = layer(device), {"backend": "triton", "engine": "grouped_mm"}
    whole = computed(inputs, **options)
    for name, part in computed(inputs, tile_tokens=8, **options).items():
        assert_close(name, part, whole[name], FLOAT32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiles_equal_float64_autograd(backend, device):
    exact = layer(dtype=torch.float64)
    probe = torch.randn(TOKENS, 64, generator=torch.Generator().manual_seed(99)).double()
    out = experts_reference(*exact.arguments())
    grads = torch.autograd.grad((out * probe).sum(), list(exact.leaves().values()))
    found = computed(exact.to(torch.float32, device), backend=backend, tile_tokens=5)
    for (name, actual), expected in zip(found.items(), (out, *grads), strict=True):
        assert_close(name, actual.cpu(), expected, FLOAT32)


def test_bf16_factors_are_summed_in_fp32():
    """Rounding each tile's part to the dtype of the factors would lose what later tiles add."""
    inputs = layer(dtype=torch.bfloat16)
    whole, parts = computed(inputs), computed(inputs, tile_tokens=1)
    exact = computed(inputs.to(torch.float64))
    for name in inputs.leaves():
        if "." in name:
            error, usual = (
                (got[name].double() - exact[name]).norm() / exact[name].norm()
                for got in (parts, whole)
            )
            assert error <= 1.02 * usual, name


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_kernel_is_that_of_the_whole_call(backend, device, monkeypatch):
    """Engines and tiles are chosen by the rows of the call, or its bits would not be these."""
    asked = []
    choose, engine_for = products.choose_tiles, products.engine_for
    monkeypatch.setattr(
        products,
        "choose_tiles",
        lambda *a, **k: asked.append(k.get("rows_per_expert")) or choose(*a, **k),
    )
    monkeypatch.setattr(
        products, "engine_for", lambda *a, **k: asked.append(k["rows"]) or engine_for(*a, **k)
    )
    computed(layer(device), backend=backend, tile_tokens=8)
    assert set(asked) == ({2 * TOKENS, 2 * TOKENS // 4, None} if backend == "triton" else set())


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.parametrize("merge_aware", [False, True], ids=["split", "merge-aware"])
@pytest.mark.parametrize("room", [True, False], ids=["both-fit", "no-room"])
def test_experts_are_decoded_once_a_pass_where_both_fit(room, merge_aware, device, monkeypatch):
    filled = []
    fill = decode._fill
    monkeypatch.setattr(decode, "_fill", lambda stack, *a: filled.append(stack) or fill(stack, *a))
    inputs = layer(device)
    both = 4 * (64 * 64 + 64 * 32) * 4
    options = {"backend": "triton", "engine": "fused", "merge_aware": merge_aware}
    out = experts(*inputs.arguments(), **options, tile_tokens=8, scratch_bytes=both - (not room))
    forward = len(filled)
    out.sum().backward()
    tiles = 1 if room else 3
    assert (forward, len(filled) - forward) == (2 * tiles, 2 * tiles)
    filled.clear()
    kept = KeptExperts(repeated=True)
    out = experts(
        *inputs.arguments(), **options, tile_tokens=8, scratch_bytes=both - (not room), kept=kept
    )
    assert not filled, "a repeated pass multiplies nothing"
    out.backward(torch.ones_like(out))
    assert len(filled) == (2 if room else 3 * tiles), "gate_up forwards again, and both back"


def test_spans():
    assert tiled.spans(10, None) == [(0, 10)] == tiled.spans(10, 10)
    assert tiled.spans(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert tiled.spans(0, 4) == [(0, 0)]


def test_no_tokens_and_no_graph():
    inputs = layer()
    x, indices, weights, *rest = inputs.arguments()
    assert experts(x[:0], indices[:0], weights[:0], *rest, tile_tokens=4).shape == (0, 64)
    with torch.no_grad():
        out = experts(*inputs.arguments(), tile_tokens=4)
    assert out.grad_fn is None
    assert_close("out", out, experts(*inputs.arguments()), FLOAT32)


@pytest.mark.parametrize("tile_tokens", [0, -1])
def test_a_tile_holds_at_least_a_token(tile_tokens):
    with pytest.raises(ValueError, match="tile_tokens needs 1 or more"):
        experts(*layer().arguments(), tile_tokens=tile_tokens)
