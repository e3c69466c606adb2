"""One optimizer step is one mean: micro-batches on two ranks equal one batch in one process."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from gptoss_kernels.linear_cross_entropy import linear_cross_entropy


def step():
    """Return the inputs of a step: 24 rows, most without loss in the first micro-batches."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(24, 10, generator=generator, dtype=torch.float64)
    factor = torch.randn(16, 10, generator=generator, dtype=torch.float64)
    head = torch.randn(53, 16, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 53, (24,), generator=generator)
    weights = torch.rand(24, generator=generator)
    weights[:9] = 0
    weights[3] = 1
    return inputs, factor, head, labels, weights


def micro_batch(rows, total_weight):
    """Return this micro-batch's share of the step's loss and the gradient of a trained factor."""
    inputs, factor, head, labels, weights = step()
    factor.requires_grad_()
    hidden = torch.tanh(inputs[rows] @ factor.T)
    loss, _ = linear_cross_entropy(hidden, head, labels[rows], weights[rows], chunk_rows=4)
    (loss / total_weight).backward()
    return loss.detach() / total_weight, factor.grad


def rank_main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    weights = step()[-1].double()
    # Two micro-batches a rank, of unequal size and unequal weight.
    mine = ((slice(0, 4), slice(4, 9)), (slice(9, 10), slice(10, 24)))[rank]
    total_weight = sum(weights[rows].sum() for rows in mine)
    dist.all_reduce(total_weight)
    parts = [micro_batch(rows, total_weight) for rows in mine]
    loss, grad = (sum(values) for values in zip(*parts, strict=True))
    dist.all_reduce(loss)
    dist.all_reduce(grad)
    if rank == 0:
        torch.save((loss, grad), f"{folder}/result.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    mp.spawn(rank_main, args=(str(tmp_path),), nprocs=2)
    loss, grad = torch.load(tmp_path / "result.pt")
    expected, expected_grad = micro_batch(slice(0, 24), step()[-1].double().sum())
    assert torch.allclose(loss, expected, rtol=1e-13, atol=0)
    assert torch.allclose(grad, expected_grad, rtol=1e-12, atol=1e-15)
    # What averaging the averages would have given is something else.
    halves = (slice(0, 9), slice(9, 24))
    weights = step()[-1].double()
    naive = sum(micro_batch(rows, weights[rows].sum())[0] for rows in halves) / 2
    assert abs(naive - expected) > 0.01 * expected
