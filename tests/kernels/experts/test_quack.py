"""The QuACK engine: what is asked of the library, its proof, and on a GPU the layer it computes.

Without the library a stand-in computes what its documentation says: it calls our epilogue once per
expert on torch tensors, so that shapes, offsets, gathering and the epilogue itself are tested.
"""

import importlib.metadata
import importlib.util
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from gptoss_kernels import ExpertProjection, mxfp4
from gptoss_kernels.experts import engines, experts, quack
from gptoss_kernels.experts.experts import experts_reference
from gptoss_kernels.experts.quack import ProductForm, find_fault, quack_obstacle, quack_product
from gptoss_kernels.swiglu import swiglu_reference
from gptoss_kernels.testing import assert_close

CPU = torch.device("cpu")
FORMS = [
    pytest.param(ProductForm(True, True, True, True, False), id="gate_up"),
    pytest.param(ProductForm(False, True, True, False, False), id="down"),
    pytest.param(ProductForm(True, False, True, False, True), id="d-down"),
    pytest.param(ProductForm(False, False, True, False, True), id="d-gate_up"),
    pytest.param(ProductForm(True, True, False, True, False), id="gate_up-merged"),
    pytest.param(ProductForm(False, False, False, False, True), id="plain"),
]


class Operand:
    """A pinned operand."""

    def __init__(self, name):
        self.name = name


class StandIn:
    """What ``gemm_epilogue`` makes of an epilogue, in torch."""

    calls = ()

    def __init__(self, fn, outputs, ops, mode):
        self.fn, self.outputs, self.ops, self.mode = fn, outputs, ops, mode
        self.names = list(inspect.signature(fn).parameters)

    def __call__(self, A, B, C=None, *, out, tuned, cu_seqlens_m, A_idx=None, **operands):
        StandIn.calls = (*StandIn.calls, (A, B, C, out, cu_seqlens_m, A_idx, operands))
        assert set(self.names) == {"acc", *operands} | ({"c"} if C is not None else set())
        assert set(self.ops) == set(operands)
        assert (self.mode == "acc_pair") == ("activation" in out)
        assert tuned is False
        assert cu_seqlens_m.dtype == torch.int32
        assert len(cu_seqlens_m) == B.shape[0] + 1
        for tensor in (A, B, out["D"]):
            assert 1 in tensor.stride()[-2:], "TMA copies along a contiguous axis"
        for expert in range(B.shape[0]):
            part = slice(*cu_seqlens_m[expert : expert + 2].tolist())
            rows = A[part] if A_idx is None else A[A_idx[part]]
            arguments = {"acc": (rows.double() @ B[expert].double()).float()}
            if C is not None:
                arguments["c"] = C[part].float()
            for name, value in operands.items():
                arguments[name] = value[expert].float() if name == "bias" else value
            for name, values in self.fn(**arguments).items():
                out[name][part] = values.to(out[name].dtype)
        return out


def swiglu_oai(gate, up, alpha=1.702, limit=float("inf")):
    return swiglu_reference(torch.stack((gate, up), -1).flatten(-2), alpha=alpha, limit=limit)


@pytest.fixture
def library(monkeypatch):
    """Stand-ins for the modules that we import of QuACK."""
    parts = {
        "quack": {},
        "quack.epilogue": {},
        "quack.epilogue.frontend": {
            "gemm_epilogue": lambda outputs=(), ops=None, mode=None: (
                lambda fn: StandIn(fn, outputs, ops or {}, mode)
            )
        },
        "quack.epilogue.ops": {"RowVecLoad": Operand, "Scalar": Operand},
        "quack.epilogue.math": {
            "unpack": lambda x: (x[:, 0::2], x[:, 1::2]),
            "pack": lambda a, b: torch.stack((a, b), -1).flatten(-2),
        },
        "quack.activation": {"swiglu_oai": swiglu_oai},
    }
    for name, content in parts.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    caches = (quack.make_product, quack.find_fault, quack.quack_obstacle)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(StandIn, "calls", ())
    yield monkeypatch
    for cache in caches:
        cache.cache_clear()


def obstacle(device=CPU, dtype=torch.bfloat16):
    quack_obstacle.cache_clear()
    return quack_obstacle(device, dtype)


@pytest.mark.skipif(importlib.util.find_spec("quack") is not None, reason="QuACK is installed here")
def test_not_installed_is_said(device):
    assert "pip install gptoss-tune[quack]" in obstacle()
    with pytest.raises(ValueError, match="quack-kernels is not installed"):
        run(layer_inputs(), engine="quack")


def test_each_obstacle_has_its_reason(monkeypatch):
    version = "0.6.5"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert "needs an NVIDIA GPU, got device cpu" in obstacle()
    assert "needs bfloat16, got torch.float16" in obstacle(dtype=torch.float16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA B200")
    assert "compute capability 9.0, got 10.0 (NVIDIA B200)" in obstacle(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert obstacle(torch.device("cuda", 0)) is None
    for version in ("0.6.4", "0.7.0", "0.5"):
        assert f"0.6.5 to before 0.7, got {version}" in obstacle(torch.device("cuda", 0))
    quack_obstacle.cache_clear()


@pytest.mark.parametrize("form", FORMS)
def test_the_proof_passes_what_is_right(library, form):
    assert find_fault(form, CPU, torch.float32) is None
    _, B, C, out, _, indices, _ = StandIn.calls[0]
    assert (indices is not None, C is not None) == (form.gathered, form.added)
    assert (B.stride(-1) == 1) == form.turned, "[E, K, N] of a matrix with K contiguous is turned"
    assert C is None or C is out["D"], "the rank-r product lies where the result goes"


def test_the_proof_passes_bf16(library):
    assert find_fault(FORMS[0].values[0], CPU, torch.bfloat16) is None


def no_limit(gate, up, alpha, limit):
    return swiglu_oai(gate, up, alpha)


def gate_not_clamped(gate, up, alpha, limit):
    return swiglu_oai(gate, up.clamp(-limit, limit), alpha)


def up_clamped_from_above_only(gate, up, alpha, limit):
    return swiglu_oai(gate.clamp(max=limit), up.clamp(max=limit), alpha)


def up_without_one(gate, up, alpha, limit):
    return swiglu_oai(gate, up - 1, alpha, limit)


@pytest.mark.parametrize(
    "planted", [no_limit, gate_not_clamped, up_clamped_from_above_only, up_without_one]
)
def test_the_proof_finds_another_activation(library, planted):
    library.setattr(sys.modules["quack.activation"], "swiglu_oai", planted)
    fault = find_fault(FORMS[0].values[0], CPU, torch.float32)
    assert fault is not None
    assert "its activation is wrong" in fault


@pytest.mark.parametrize("planted", ["scaling", "bias", "gather", "offsets", "C"])
def test_the_proof_finds_what_is_left_out(library, planted):
    right = StandIn.__call__

    def wrong(self, A, B, C=None, *, cu_seqlens_m, A_idx=None, **options):
        if planted == "scaling":
            options["scaling"] = 1.0
        if planted == "bias":
            options["bias"] = options["bias"][:1].expand_as(options["bias"])
        if planted == "gather":
            A_idx = torch.arange(len(A_idx), dtype=torch.int32)
        if planted == "offsets":
            cu_seqlens_m = cu_seqlens_m.clamp(max=int(cu_seqlens_m[-1]) - 5)
        if planted == "C":
            C = torch.zeros_like(C)
        return right(self, A, B, C, cu_seqlens_m=cu_seqlens_m, A_idx=A_idx, **options)

    library.setattr(StandIn, "__call__", wrong)
    fault = find_fault(FORMS[0].values[0], CPU, torch.float32)
    assert fault is not None
    assert "its product is wrong" in fault


def test_a_library_that_refuses_is_an_obstacle(library):
    def refuses(self, *arguments, **options):
        raise RuntimeError("no kernel image")

    library.setattr(StandIn, "__call__", refuses)
    assert "RuntimeError" in find_fault(FORMS[1].values[0], CPU, torch.float32)


def layer_inputs(
    dtype=torch.float32, device=CPU, tokens=23, sizes=(5, 64, 96), rank=4, packed=True
):
    """A small layer with an empty first expert; the weights MXFP4 or dense."""
    generator = torch.Generator().manual_seed(3)
    num_experts, hidden, intermediate = sizes

    def normal(*shape, scale=1.0, kind=dtype):
        return (torch.randn(shape, generator=generator) * scale).to(device, kind)

    def projection(out, inner):
        weight = normal(num_experts, out, inner, scale=inner**-0.5, kind=torch.float32)
        stored = mxfp4.quantize(weight) if packed else weight.mT.contiguous().to(dtype)
        pair = (normal(num_experts, rank, inner, scale=0.1), normal(num_experts, out, rank))
        leaves = [factor.requires_grad_() for factor in pair]
        return ExpertProjection(stored, normal(num_experts, out), *leaves, scaling=0.5)

    scores = torch.rand((tokens, num_experts), generator=generator)
    scores[:, 0] = 0
    gates, chosen = scores.topk(2)
    return (
        normal(tokens, hidden, scale=3.0).requires_grad_(),
        chosen.to(device),
        gates.to(device, dtype).requires_grad_(),
        projection(2 * intermediate, hidden),
        projection(hidden, intermediate),
    )


def run(inputs, function=experts, **options):
    if function is experts:
        options["backend"] = "triton"
    x, _, gates, first, second = inputs
    leaves = [x, gates, first.lora_A, first.lora_B, second.lora_A, second.lora_B]
    out = function(*inputs, **options)
    d_out = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, d_out)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the layer runs in the interpreter here")
@pytest.mark.parametrize("packed", [True, False], ids=["mxfp4", "dense"])
def test_the_layer_on_the_stand_in(library, packed):
    """All four products by the engine, everything else ours: outputs and every gradient."""
    library.setattr(engines, "quack_obstacle", lambda device, dtype: None)
    inputs = layer_inputs(packed=packed)
    expected = run(inputs, experts_reference)
    before = len(StandIn.calls)
    actual = run(inputs, engine="quack")
    names = ("out", "d_x", "d_gates", "d_A_g", "d_B_g", "d_A_d", "d_B_d")
    for name, got, truth in zip(names, actual, expected, strict=True):
        assert_close(name, got, truth, tolerance=2e-5)
    assert len(StandIn.calls) > before


def test_the_interface_is_the_librarys():
    """The names and parameters that the stand-in has are those of the package."""
    pytest.importorskip("quack", reason="QuACK is not installed")
    from quack.activation import swiglu_oai as theirs
    from quack.epilogue.frontend import EpiMod, gemm_epilogue
    from quack.epilogue.math import pack, unpack
    from quack.epilogue.ops import RowVecLoad, Scalar

    assert {"outputs", "ops", "mode"} <= set(inspect.signature(gemm_epilogue).parameters)
    call = set(inspect.signature(EpiMod.__call__).parameters)
    assert {"A", "B", "C", "out", "tuned", "cu_seqlens_m", "A_idx", "operands"} <= call
    assert {"alpha", "limit"} <= set(inspect.signature(theirs).parameters)
    assert all(map(callable, (pack, unpack, RowVecLoad, Scalar)))
    for form in (parameter.values[0] for parameter in FORMS):
        clamp = (1.702, 7.0) if form.activated else None
        product = quack.make_product(form.biased, form.added, clamp)
        assert isinstance(product, EpiMod)


@pytest.mark.slow
def test_the_report_compiles_without_a_gpu_or_says_why_not():
    script = Path(__file__).resolve().parents[3] / "kernels" / "bench" / "compile_quack.py"
    done = subprocess.run(
        [sys.executable, script, "--only", "d gate_up, merged"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TRITON_INTERPRET": "0"},
    )
    assert done.returncode == 0, done.stderr
    if quack.package_obstacle():
        assert "nothing compiled: " in done.stdout
        return
    line = done.stdout.splitlines()[-1]
    spills, multiplied, copied = map(int, line.split()[-5:-2])
    assert line.startswith("d gate_up, merged")
    assert spills == 0
    assert multiplied > 0
    assert copied > 0


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_gpu_each_form_is_right(form, device):
    if why := quack_obstacle(device, torch.bfloat16):
        pytest.skip(why)
    assert find_fault(form, device, torch.bfloat16) is None


@pytest.mark.gpu
def test_gpu_rows_past_the_last_keep_what_they_hold(device):
    if why := quack_obstacle(device, torch.bfloat16):
        pytest.skip(why)
    rows = torch.randn((300, 128), device=device, dtype=torch.bfloat16)
    matrices = torch.randn((2, 256, 128), device=device, dtype=torch.bfloat16)
    offsets = torch.tensor([0, 0, 131], dtype=torch.int32, device=device)
    out = torch.full((300, 256), 3.0, device=device, dtype=torch.bfloat16)
    quack_product(rows, matrices, offsets, out)
    assert (out[131:] == 3.0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [True, False], ids=["mxfp4", "dense"])
def test_gpu_layer_against_fp32(packed, device):
    """At gpt-oss's widths, 4 experts; no value near a clamp, where bf16 may tip it."""
    if why := quack_obstacle(device, torch.bfloat16):
        pytest.skip(why)
    sizes = (4, 2880, 2880)
    inputs = layer_inputs(torch.bfloat16, device, 512, sizes, rank=16, packed=packed)
    x, chosen, gates, first, second = inputs
    options = {"limit": 1e4}
    wide = [t.detach().float().requires_grad_() for t in (x, gates)]
    truth = run(
        (wide[0], chosen, wide[1], *(_wide(p) for p in (first, second))),
        experts_reference,
        **options,
    )
    actual = run(inputs, engine="quack", **options)
    names = ("out", "d_x", "d_gates", "d_A_g", "d_B_g", "d_A_d", "d_B_d")
    for name, got, expected in zip(names, actual, truth, strict=True):
        # Roundings of Z, H and their gradients to bf16, 2^-9 each; not measured on a GPU yet.
        assert_close(name, got, expected, tolerance=1.2e-2)


def _wide(projection):
    factors = (projection.lora_A, projection.lora_B)
    weight = projection.weight
    return ExpertProjection(
        weight.float() if isinstance(weight, torch.Tensor) else weight,
        projection.bias.float(),
        *(factor.detach().float().requires_grad_() for factor in factors),
        scaling=projection.scaling,
    )
