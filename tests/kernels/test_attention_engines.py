"""An engine is believed after it has computed a small problem in front of us."""

import pytest
import torch
from gptoss_kernels.attention import attention, find_documents
from gptoss_kernels.attention_eager import EagerEngine
from gptoss_kernels.attention_engines import ENGINE_NAMES, choose_engine, find_fault, find_obstacle
from gptoss_kernels.attention_flash import TorchFlashEngine
from gptoss_kernels.attention_triton import TritonEngine

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

    def backward(self, *args):
        *grads, delta = super().backward(*args)
        return (*grads, torch.zeros_like(delta))


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


@pytest.mark.parametrize("window", [None, 128], ids=["full", "window"])
def test_the_torch_flash_engine_fits_the_signatures_of_this_torch(window):
    # On meta tensors torch checks arguments and shapes of its flash kernels and computes nothing.
    def empty(heads):
        leaf = torch.empty(2, 96, heads, 64, device="meta", dtype=torch.bfloat16)
        return leaf.requires_grad_()

    query, key, value = empty(4), empty(2), empty(2)
    sinks = torch.empty(4, device="meta", requires_grad=True)
    ends = torch.empty(5, dtype=torch.int32, device="meta")
    documents = find_documents(2, 96, torch.device("meta"), cu_seqlens=ends, max_length=60)
    heads_first = [leaf.transpose(1, 2) for leaf in (query, key, value)]
    out = attention(
        *heads_first,
        sinks,
        scaling=0.125,
        window=window,
        documents=documents,
        engine=TorchFlashEngine(),
    )
    assert out.shape == query.shape and out.is_contiguous()
    grads = torch.autograd.grad(out.sum(), (query, key, value, sinks))
    assert [g.shape for g in grads] == [query.shape, key.shape, value.shape, sinks.shape]


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
