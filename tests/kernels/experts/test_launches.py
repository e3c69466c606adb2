"""What one expert layer starts: Triton's kernels and torch's, counted, so that none slips in.

Each costs the host tens of microseconds, in every layer of every step. Whoever raises a number here
has to know why.
"""

import importlib
import pkgutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import gptoss_kernels
import pytest
import torch
from gptoss_kernels import backend
from gptoss_kernels.experts import experts
from gptoss_kernels.experts.products import laid_out_in_16s
from gptoss_kernels.experts.records import KeptExperts
from gptoss_kernels.testing import make_layer, make_routing
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.checkpoint import checkpoint

# On a GPU the numbers of kernels are these; those of torch differ by what stands in for a check.
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counted in the interpreter")


@pytest.fixture
def launches(monkeypatch):
    """Count launches by kernel."""
    counts = Counter()

    def counting(kernel, grid, *arguments, **options):
        counts[kernel.fn.__name__.strip("_").removesuffix("_kernel")] += 1
        with _disable_current_modes():  # the interpreter computes with torch
            backend.launch(kernel, grid, *arguments, **options)

    for module in pkgutil.iter_modules(gptoss_kernels.__path__):
        if module.ispkg:
            continue
        loaded = importlib.import_module(f"gptoss_kernels.{module.name}")
        if loaded is not backend and hasattr(loaded, "launch"):
            monkeypatch.setattr(loaded, "launch", counting)
    return counts


class TorchKernels(TorchDispatchMode):
    """Counts torch's operations that compute or copy: no views, no allocations."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        aliases = any(
            r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns
        )
        if not aliases and not name.startswith(("empty", "new_empty", "detach")):
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def adapted_layer():
    """Return a layer on MXFP4 whose factors are views as PEFT's, in another dtype than the rows.

    Those are fp32 here, which the interpreter needs, and the factors fp64.
    """
    inputs = make_layer(
        make_routing(24, 2, 4), num_experts=4, hidden=64, intermediate=32, rank=3, device="cpu"
    )
    adapted = {}
    for name in ("gate_up", "down"):
        plain = getattr(inputs, name)
        lora_A = plain.lora_A.detach().double().requires_grad_()
        stored = plain.lora_B.detach().double().permute(1, 2, 0).contiguous().requires_grad_()
        factors = {"lora_A": lora_A, "lora_B": stored.permute(2, 0, 1)}
        adapted[name] = replace(plain, **factors)
    return replace(inputs, **adapted)


def run(inputs, mode):
    """Return the layer's output as a checkpointed decoder layer would make it."""
    kept = KeptExperts() if mode == "full" else None
    x, *others = inputs.arguments()

    def once(x):
        return experts(
            x,
            *others,
            backend="triton",
            engine="fused",
            recompute_gate_up=mode == "selective",
            kept=kept,
        )

    @contextmanager
    def said(repeated):
        kept.repeated = repeated
        yield

    if mode != "full":
        return once(x)
    return checkpoint(once, x, use_reentrant=False, context_fn=lambda: (said(False), said(True)))


ROUTING = {"routing_count": 1, "routing_scan": 1, "routing_scatter": 1, "tile_map": 1}
PRODUCTS = {"dequantize": 2, "grouped_matmul": 4, "combine": 1}
BACKWARD = {"ragged_outer": 4, "swiglu_backward": 1, "routing_gradient": 1}
AGAIN = {"selective": {"grouped_matmul": 2}, "full": {"grouped_matmul": 3}}


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_launches_of_a_layer(mode, launches):
    """The interpreter has one tile height, so one map; on a GPU there are two or three."""
    inputs = adapted_layer()
    with TorchKernels() as torchs:
        out = run(inputs, mode)
    assert launches == Counter(ROUTING) + Counter(PRODUCTS)
    # The check of the indices (2), and one copy of each factor.
    assert torchs.counts == {"ge": 1, "all": 1, "_local_scalar_dense": 1, "_to_copy": 4}
    launches.clear()
    gradient = torch.ones_like(out)
    with TorchKernels() as torchs:
        out.backward(gradient)
    assert launches == Counter(PRODUCTS) + Counter(BACKWARD) + Counter(AGAIN.get(mode, {}))
    # The routing weights by row; each B and the bias into one factor, and the gradient of each B
    # into the layout of its parameter; the other factors, those that are multiplied with again, and
    # the four gradients, which are fp32 as PEFT's factors are and are copied for these alone.
    copies = 3 + {"none": 0, "selective": 2, "full": 3}[mode] + 4
    nan = Counter(new_full=mode == "full")  # what the pass that runs again returns
    assert torchs.counts == Counter(index=1, copy_=2 + 2, _to_copy=copies) + nan


@pytest.mark.parametrize(("rank", "apart"), [(3, 16), (8, 16), (16, 16), (24, 32)])
def test_half_precision_factors_lie_at_multiples_of_16(rank, apart):
    """Only so does the compiler load them in wide pieces (compile_report.py, "E 128")."""
    factor = torch.randn(5, rank, 2).permute(2, 0, 1)  # as PEFT holds B
    laid = laid_out_in_16s(factor, torch.bfloat16)
    assert torch.equal(laid, factor.bfloat16())
    assert laid.stride()[1:] == (apart, 1)
    assert torch.equal(laid_out_in_16s(factor, torch.float32), factor)
