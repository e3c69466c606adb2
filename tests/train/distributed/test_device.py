"""Where a process computes: on a CPU with one thread, unless it is told otherwise."""

import pytest
import torch

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
    with pytest.raises(ValueError, match="inside"), steady_threads():
        assert torch.get_num_threads() == 1
        raise ValueError("inside")
    assert torch.get_num_threads() == 2


def test_the_users_number_stays(two_threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with steady_threads():
        assert torch.get_num_threads() == 2
