"""What each rank does for ``test_context_parallel.py``; one launch for all cases of a number.

    context_ranks.py FOLDER

``FOLDER/cases.pt`` has the cases; the rank leaves its parts of the results beside it.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from gptoss_kernels.attention import context_parallel
from gptoss_kernels.attention.context_parallel import context_attention, find_context_rows
from gptoss_kernels.attention.eager import EagerEngine
from gptoss_kernels.attention.interface import KeptAttention
from gptoss_kernels.attention.shards import RowShard
from gptoss_kernels.attention.triton_engine import AttentionTiles, Tile, TritonEngine


class Counted:
    """``_gather`` and ``_add_up`` with what went through them."""

    def __init__(self):
        self.shapes = []
        for name in ("_gather", "_add_up"):
            setattr(context_parallel, name, self.counting(getattr(context_parallel, name)))

    def counting(self, function):
        def call(tensor, group):
            self.shapes.append((function.__name__, tuple(tensor.shape)))
            return function(tensor, group)

        return call


def engine_of(name):
    if name == "triton":
        return TritonEngine(AttentionTiles(*[Tile(16, 16, 4, 1)] * 3))
    return EagerEngine(16)


def run(case, shard, counted):
    """Return this rank's output and gradients of one case, and what it sent."""
    mine = shard.indices()
    dtype = torch.float32 if case["engine"] == "triton" else torch.float64
    *leaves, sinks = [leaf.to(dtype) for leaf in case["leaves"]]
    # Strided, as after a projection.
    leaves = [t[:, :, mine].transpose(1, 2).contiguous().transpose(1, 2) for t in leaves]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    sinks.requires_grad_(case["trained"])
    rows = find_context_rows(case["positions"][:, mine], dist.group.WORLD)
    counted.shapes.clear()
    settings = {"scaling": 0.3, "window": case["window"], "rows": rows}
    settings["engine"] = engine_of(case["engine"])
    kept = KeptAttention() if case["again"] else None
    out = context_attention(*leaves, sinks, **settings, kept=kept)
    first = list(counted.shapes)
    if kept is not None:  # as under activation checkpointing: the second pass is differentiated
        out = context_attention(*leaves, sinks, **settings, kept=kept)
    second = counted.shapes[len(first) :]
    wanted = [*leaves, sinks] if case["trained"] else leaves
    grads = torch.autograd.grad(out, wanted, case["grad"][:, mine].to(dtype))
    return {
        "results": [out.detach(), *grads],
        "reach": rows.reach(case["window"]),
        "first": first,
        "second": second,
        "all": list(counted.shapes),
    }


def main():
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    cases = torch.load(folder / "cases.pt")
    counted, found = Counted(), []
    for case in cases:
        shard = RowShard(case["positions"].shape[1], ranks, rank)
        found.append(run(case, shard, counted))
    torch.save(found, folder / f"{ranks}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    assert os.environ["WORLD_SIZE"]
    main()
