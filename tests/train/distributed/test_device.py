"""Where a process computes: on a CPU with one thread, unless it is told otherwise."""

import os
import warnings

import pytest
import torch

from gptoss_tune.train.distributed import watchdog
from gptoss_tune.train.distributed.device import steady_threads

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="threads of the CPU")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_one_thread_computes_and_the_number_comes_back(two_threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(ValueError, match="inside"), steady_threads() as steadied:
        assert steadied and torch.get_num_threads() == 1
        raise ValueError("inside")
    assert torch.get_num_threads() == 2 and "OMP_NUM_THREADS" not in os.environ


def in_a_group_of_two():
    """What each rank does: join the group as a training does."""
    with steady_threads():
        warnings.simplefilter("error")
        watchdog.join()
        assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_a_group_of_ranks_computes_on_one_thread_each(on_ranks, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert on_ranks(2, in_a_group_of_two) == [0, 0]


def test_the_users_number_stays(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with steady_threads() as steadied:
        assert not steadied and torch.get_num_threads() == 2
