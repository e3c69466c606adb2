"""``train.deterministic``: what is switched, for how long, and whether a step can do so."""

import json
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gptoss_tune.error_hints import cause_of
from gptoss_tune.errors import MachineError
from gptoss_tune.train.distributed.deterministic import CUBLAS, deterministic
from gptoss_tune.train.run import train

# What torch.use_deterministic_algorithms refuses on CUDA, of what a language model could use.
REFUSED = {"put_", "histc", "bincount", "median", "nanmedian", "nll_loss2d_forward", "kthvalue"}
REFUSED_IN_FLOATS = {"cumsum", "cumsum_", "logcumsumexp"}


class Refused(TorchDispatchMode):
    """Notes operations that would raise on a GPU, and which of all ran while torch was told."""

    def __init__(self):
        super().__init__()
        self.found, self.held, self.free = set(), set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        told = torch.are_deterministic_algorithms_enabled()
        (self.held if told else self.free).add(name)
        floats = any(isinstance(a, torch.Tensor) and a.is_floating_point() for a in args)
        if name in REFUSED or (floats and name in REFUSED_IN_FLOATS):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def plain(monkeypatch):
    """A process that told cuBLAS nothing; the variable is gone afterwards."""
    monkeypatch.setenv(CUBLAS, "")
    monkeypatch.delenv(CUBLAS)


def test_a_run_uses_nothing_that_torch_refuses_and_says_so_in_its_record(recipe, plain, tmp_path):
    settings = recipe(
        "train.deterministic=true", "train.max_steps=2", "train.activation_checkpointing=selective"
    )
    with Refused() as watch:
        train(settings)
    assert not watch.found, "these raise on a GPU"
    steps = {"mm", "topk", "index_add_"}
    assert steps <= watch.held and not steps & watch.free, "forward and backward, of every step"
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["environment"]["deterministic"] is True
    assert record["recipe"]["train"]["deterministic"] is True
    assert record["fingerprint"]["train.deterministic"] is True
    assert os.environ[CUBLAS] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled(), "other work in this process is free"


def test_the_watch_sees_what_torch_refuses():
    with Refused() as watch:
        torch.rand(3).cumsum(0)
        torch.ones(3, dtype=torch.int64).cumsum(0)
        torch.rand(3).histc(2)
    assert watch.found == {"cumsum", "histc"}


def test_torch_is_told_while_it_lasts_and_never_to_warn_only(plain):
    filled = torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(ZeroDivisionError), deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        # With it flash attention would stay as it is, behind a warning.
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == filled
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_cublas_that_was_told_otherwise_or_has_started_is_an_error(plain, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(MachineError, match=f"start Python with {CUBLAS}=:4096:8"):
        deterministic(True).__enter__()
    assert CUBLAS not in os.environ
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic(True):
        assert os.environ[CUBLAS] == ":16:8"
    monkeypatch.setenv(CUBLAS, ":0:0")
    with pytest.raises(MachineError, match="is ':0:0' and has to be one of"):
        deterministic(True).__enter__()
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_form_is_explained():
    error = RuntimeError(
        "cumsum_cuda_kernel does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'."
    )
    told = cause_of(error)
    assert "cumsum_cuda_kernel" in told and "train.deterministic=false" in told


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["torch_flash", "triton", "fa4", "flex"])
def test_on_a_gpu_gradients_have_the_same_bits_each_time(name):
    from gptoss_kernels.attention.attention import attention, find_documents
    from gptoss_kernels.attention.engines import choose_engine, find_obstacle

    place = (torch.device("cuda"), torch.bfloat16, 64)
    if (obstacle := find_obstacle(name, *place, deterministic=True)) is not None:
        pytest.skip(obstacle)
    generator = torch.Generator().manual_seed(0)
    # Many blocks of keys for each query: the order of their sums is what differs.
    shapes = [(1, heads, 8192, 64) for heads in (64, 8, 8)]
    leaves = [torch.randn(s, generator=generator).cuda().bfloat16() for s in (*shapes, (64,))]
    grad = torch.randn((1, 8192, 64, 64), generator=generator).cuda().bfloat16()
    torch.use_deterministic_algorithms(True)
    try:
        engine = choose_engine(name, *place, deterministic=True).engine
        documents = find_documents(1, 8192, place[0])

        def gradients():
            fresh = [leaf.detach().requires_grad_() for leaf in leaves]
            out = attention(*fresh, scaling=0.125, documents=documents, engine=engine)
            return torch.autograd.grad(out, fresh, grad)

        first = gradients()
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
