"""An engine is believed after it has computed a small problem in front of us."""

import sys
import types

import pytest
import torch
from gptoss_kernels.attention import engines, sinks
from gptoss_kernels.attention.attention import attention, attention_reference, find_documents
from gptoss_kernels.attention.cudnn import OLDEST_VERSION, CudnnEngine, cudnn_obstacle
from gptoss_kernels.attention.eager import EagerEngine
from gptoss_kernels.attention.engines import (
    AUTO_ORDER,
    ENGINE_NAMES,
    choose_engine,
    find_fault,
    find_obstacle,
)
from gptoss_kernels.attention.fa4 import FlashAttention4Engine
from gptoss_kernels.attention.interface import AttentionRule
from gptoss_kernels.attention.torch_flash import TorchFlashEngine
from gptoss_kernels.attention.triton_engine import TritonEngine
from gptoss_kernels.testing import relative_rms

CPU = torch.device("cpu")


def test_auto_on_a_cpu_is_exact():
    choice = choose_engine("auto", CPU, torch.float32, 16)
    assert choice.name == "eager" and choice.reason == "eager"


@pytest.mark.parametrize("name", [name for name in ENGINE_NAMES if name != "eager"])
def test_an_engine_that_needs_a_gpu_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"attention {name} cannot be used: it needs a GPU"):
        choose_engine(name, CPU, torch.bfloat16, 64)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"must be auto or one of .*torch_flash.*got 'sdpa'"):
        choose_engine("sdpa", CPU, torch.bfloat16, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_exact_engine_passes_its_own_proof(dtype):
    assert find_fault(EagerEngine(), CPU, dtype, 16) is None
    assert find_obstacle("eager", CPU, dtype, 16) is None


class WithoutSinkGradient(EagerEngine):
    """A library whose forward knows sinks and whose backward does not."""

    def row_sums(self, grad_out, out):
        return torch.zeros_like(super().row_sums(grad_out, out))


class WindowOf129(EagerEngine):
    """A library that does not count the token itself."""

    def _pieces(self, query, rule):
        from dataclasses import replace

        window = None if rule.window is None else rule.window + 1
        return super()._pieces(query, replace(rule, window=window))


class SeesItsNeighbours(EagerEngine):
    """A library that ignores where documents end."""

    def _pieces(self, query, rule):
        from dataclasses import replace

        blind = replace(rule.documents, first_key=torch.zeros_like(rule.documents.first_key))
        return super()._pieces(query, replace(rule, documents=blind))


class StockBackward(EagerEngine):
    """A rescaled output on top of a backward that ignores the gradient of its LSE."""

    def backward(self, grad_out, query, key, value, out, lse, rule):
        no_sink = super().forward(query, key, value, torch.full((4,), -1e9), rule)
        return super().backward(grad_out, query, key, value, *no_sink, rule)


class Refuses(EagerEngine):
    def forward(self, *args):
        raise TypeError("unexpected keyword argument 'window_size_left'")


@pytest.mark.parametrize(
    ("engine", "fault"),
    [
        (WithoutSinkGradient(), "sink gradient is wrong"),
        (WindowOf129(), "output is wrong by .* with window 64"),
        (SeesItsNeighbours(), "output is wrong"),
        (StockBackward(), "query gradient is wrong"),
        (Refuses(), "it raised TypeError: unexpected keyword"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, EagerEngine) else "",
)
def test_every_known_fault_of_other_tools_is_found(engine, fault):
    import re

    assert re.search(fault, find_fault(engine, CPU, torch.float32, 16) or "no fault found")


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "whole rows"])
@pytest.mark.parametrize("window", [None, 128], ids=["full", "window"])
@pytest.mark.parametrize("engine", [TorchFlashEngine, CudnnEngine])
def test_engines_of_torch_fit_the_signatures_of_this_torch(engine, window, packed, monkeypatch):
    # On meta tensors torch checks arguments and shapes of its kernels and computes nothing.
    ends = torch.empty(5, dtype=torch.int32, device="meta")
    facts = {"cu_seqlens": ends, "max_length": 60} if packed else {}
    documents = find_documents(2, 96, torch.device("meta"), **facts)
    documents.made.setdefault("whole_rows", False)
    documents.made["cu_seqlens"] = ends
    called = []
    original = torch._ops.OpOverloadPacket.__call__
    monkeypatch.setattr(
        torch._ops.OpOverloadPacket,
        "__call__",
        lambda op, *a, **k: called.append(op.__name__) or original(op, *a, **k),
    )

    def empty(heads):
        leaf = torch.empty(2, 96, heads, 64, device="meta", dtype=torch.bfloat16)
        return leaf.requires_grad_()

    query, key, value = empty(4), empty(2), empty(2)
    sinks = torch.empty(4, device="meta", requires_grad=True)
    out = attention(
        *(leaf.transpose(1, 2) for leaf in (query, key, value)),
        sinks,
        scaling=0.125,
        window=window,
        documents=documents,
        engine=engine("torch"),
    )
    assert out.shape == query.shape and out.is_contiguous()
    grads = torch.autograd.grad(out.sum(), (query, key, value, sinks))
    assert [g.shape for g in grads] == [query.shape, key.shape, value.shape, sinks.shape]
    cudnn = engine is CudnnEngine and window is None and not packed
    used = "_scaled_dot_product_cudnn_attention" if cudnn else "_flash_attention"
    assert sum(used in name for name in called) == 2, called


def test_auto_does_not_take_what_was_not_measured():
    assert set(ENGINE_NAMES) - set(AUTO_ORDER) == {"cudnn"}


def test_cudnn_says_what_it_needs(monkeypatch):
    sound = (torch.bfloat16, 64, (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: OLDEST_VERSION)
    assert cudnn_obstacle(*sound) is None
    assert cudnn_obstacle(torch.float32, *sound[1:]) == "it needs bf16 or fp16, got torch.float32"
    assert "this GPU has 7.5" in cudnn_obstacle(*sound[:2], (7, 5))
    assert "head sizes" in cudnn_obstacle(torch.bfloat16, 80, (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 8907)
    assert "torch has 8907" in cudnn_obstacle(*sound)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "NVIDIA" in cudnn_obstacle(*sound)


def test_where_the_same_bits_are_asked_for_some_engines_are_refused(monkeypatch):
    sound = (torch.device("cuda"), torch.bfloat16, 64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for name in ("torch_flash", "flex", "eager"):
        assert find_obstacle(name, *sound, deterministic=True) is None
    assert "does not ask cuDNN" in find_obstacle("cudnn", *sound, deterministic=True)
    with pytest.raises(ValueError, match="cudnn cannot be used: torch does not ask cuDNN"):
        choose_engine("cudnn", *sound, deterministic=True)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "not known to be deterministic" in find_obstacle("torch_flash", *sound, True)


def test_flash_attention_4_is_asked_for_the_same_bits_only_where_they_are_wanted(monkeypatch):
    asked = []

    def backward(query, key, value, *rest, **options):
        asked.append(options.get("deterministic"))
        return query, key, value

    library = types.ModuleType("flash_attn.cute.interface")
    library._flash_attn_fwd, library._flash_attn_bwd = None, backward
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", library)
    query, out, lse = torch.zeros(1, 4, 6, 16), torch.zeros(1, 6, 4, 16), torch.zeros(1, 4, 6)
    rule = AttentionRule(0.3, None, find_documents(1, 6, CPU))
    for wanted in (False, True):
        engine = FlashAttention4Engine("torch", deterministic=wanted)
        engine.backward(out, query, query, query, out, lse, rule)
    assert asked == [None, True]


def test_what_adds_the_sinks_is_said_where_it_is_not_triton(monkeypatch):
    # A card whose engine runs and on which Triton cannot: the price stands in the choice.
    monkeypatch.setattr(engines, "find_obstacle", lambda *a: None)
    monkeypatch.setattr(engines, "find_fault", lambda *a: None)
    monkeypatch.setattr(sinks, "triton_obstacle", lambda *a: "triton is not installed")
    choice = choose_engine("torch_flash", CPU, torch.bfloat16, 64)
    assert choice.engine.backend == "torch"
    assert "several passes over O, because triton is not installed" in choice.reason
    monkeypatch.setattr(sinks, "triton_obstacle", lambda *a: None)
    choice = choose_engine("torch_flash", CPU, torch.bfloat16, 64)
    assert (choice.engine.backend, choice.reason) == ("triton", "torch_flash, as asked")
    assert "head sizes" in choose_engine("torch_flash", CPU, torch.bfloat16, 80).reason


@pytest.mark.gpu
@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_engines_on_a_gpu_pass_their_proof_in_bf16(name):
    device = torch.device("cuda")
    obstacle = find_obstacle(name, device, torch.bfloat16, 64)
    if obstacle is not None:
        pytest.skip(obstacle)
    assert choose_engine(name, device, torch.bfloat16, 64).name == name


@pytest.mark.gpu
def test_triton_on_a_gpu_equals_the_exact_engine_in_fp32():
    assert find_fault(TritonEngine(), torch.device("cuda"), torch.float32, 64) is None


@pytest.mark.gpu
def test_cudnn_on_real_shapes_is_no_worse_than_torch_flash_beside_float64():
    device, shapes = torch.device("cuda"), [(1, n, 777, 64) for n in (64, 8, 8)]
    if (obstacle := find_obstacle("cudnn", device, torch.bfloat16, 64)) is not None:
        pytest.skip(obstacle)
    generator = torch.Generator().manual_seed(4)
    inputs = [torch.randn(s, generator=generator).to(device).bfloat16() for s in (*shapes, (64,))]
    grad = torch.randn((1, 777, 64, 64), generator=generator).to(device).bfloat16()

    def results(function, leaves, **settings):
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        out = function(*leaves, scaling=0.125, **settings)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    truth = results(attention_reference, [leaf.double() for leaf in inputs])
    flash = results(attention, inputs, engine=TorchFlashEngine("triton"))
    for got, usual, expected in zip(
        results(attention, inputs, engine=CudnnEngine("triton")), flash, truth, strict=True
    ):
        assert relative_rms(got, expected) <= 1.5 * relative_rms(usual, expected)
