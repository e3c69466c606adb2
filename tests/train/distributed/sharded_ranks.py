"""What each of two ranks does for ``test_sharded.py``; started by torchrun, writes what it saw.

    torchrun --nproc_per_node 2 sharded_ranks.py RECIPE FOLDER

One launch for all of it: importing the libraries takes longer than the runs.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState
from sharded_faults import disconnected, ended_by, interrupted
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from gptoss_tune.distributed import gather_over_ranks, sum_over_ranks
from gptoss_tune.model.build import build
from gptoss_tune.model.footprint import footprint
from gptoss_tune.model.parallel.sharding import Share, share_of, whole
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.guard.gradients import GradientCheck
from gptoss_tune.train.run import train
from gptoss_tune.weights import open_checkpoint

RECIPE, FOLDER = sys.argv[1], Path(sys.argv[2])
UNWATCHED = "guard.check_steps=0"
MOVED, HELD_OUT, ASKED, POISONED, PACKED = json.loads((FOLDER / "overrides.json").read_text())


def run(name, *overrides, sharded=True):
    """Train into ``FOLDER/name`` as a launcher with or without FSDP2 would start it."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    os.environ["ACCELERATE_USE_FSDP"] = str(sharded).lower()
    os.environ["FSDP_VERSION"] = "2"
    batch = ["train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=2"]
    train(load_recipe(RECIPE, [f"train.output_dir={FOLDER / name}", *batch, *overrides]))
    dist.barrier()  # rank 0 sees the others leave before they come back


def packed_bytes():
    """Return the bytes of all byte tensors alive in this process, each storage once."""
    found = [
        entry.untyped_storage()
        for entry in gc.get_objects()
        if type(entry) is torch.Tensor and entry.dtype == torch.uint8 and entry.device.type == "cpu"
    ]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


def memory():
    """Return what this rank holds of the model: at rest, and while it computes."""
    recipe = load_recipe(RECIPE, [])
    gc.collect()  # models of before
    before = packed_bytes()
    share = Share(dist.get_rank(), dist.get_world_size())
    model = build(recipe, open_checkpoint(recipe.model.name_or_path), "cpu", share).model
    at_rest, seen = packed_bytes() - before, []
    kinds: dict[str, int] = {}
    for row in footprint(model):
        kinds[row.kind] = kinds.get(row.kind, 0) + row.nbytes
    for layer in model.get_base_model().model.layers:
        layer.mlp.register_forward_hook(lambda *_: seen.append(packed_bytes() - before))
        layer.mlp.register_full_backward_hook(lambda *_: seen.append(packed_bytes() - before))
    ids = torch.arange(40)[None] + 100
    out = model(ids, shift_labels=ids, loss_weights=torch.ones(1, 40), use_cache=False)
    out.loss_sum.backward()
    held = [share_of(p.detach()) for p in model.get_base_model().model.layers[0].parameters()]
    layer = share.ranks * sum(getattr(part, "stored_nbytes", part.nbytes) for part in held)
    after = packed_bytes() - before
    return {"at_rest": at_rest, "computing": seen, "after": after, "layer": layer, "kinds": kinds}


def guard():
    """Return what the first watch of a spread model says when one rank's share goes wrong."""
    recipe = load_recipe(RECIPE, [])
    share = Share(dist.get_rank(), dist.get_world_size())
    model = build(recipe, open_checkpoint(recipe.model.name_or_path), "cpu", share).model
    watch = GradientCheck(model)
    first = dist.get_rank() == 0
    named = dict(model.named_parameters())
    adapter = next(p for n, p in named.items() if ".mlp.experts." in n and "lora_A" in n)
    watched = next(w for w in watch._trained.values() if w.parameter is adapter)
    watched.had_gradient = watched.needs_gradient = torch.tensor(True)
    still = gather_over_ranks(watch.verdict())
    none = torch.zeros_like(watched.experts)
    watched.needy_experts = none.clone()
    watched.needy_experts[0 if first else -1] = True  # each got tokens from one rank
    with torch.no_grad():
        if first:  # experts of the other rank got no token: its share stays, and that is right
            adapter.to_local()[0, 0] += 1.0
    silent = gather_over_ranks(watch.verdict())
    watched.needy_experts = none
    sound = gather_over_ranks(watch.verdict())
    if not first:
        stack = next(p for n, p in named.items() if "layers.1" in n and n.endswith(".down_proj"))
        share_of(stack).stored.blocks[-1, -1, -1, -1] ^= 1
    moved = gather_over_ranks(watch.verdict())
    watch.close()
    return {"still": still, "silent": silent, "sound": sound, "moved": moved}


def mixed_precision():
    """Return losses and gradients of a bf16 base, whole on each rank and spread over them."""
    overrides = ["model.dtype=bfloat16", "train.activation_checkpointing=selective"]
    recipe = load_recipe(RECIPE, overrides)
    base = open_checkpoint(recipe.model.name_or_path)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    ids = torch.arange(40)[None] + 100 + 50 * rank
    found = []
    for share in (None, Share(rank, ranks)):
        torch.manual_seed(0)
        model = build(recipe, base, "cpu", share).model.train()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, parameter in trained.items():
                if "lora_B" in name:  # at zero, no A would get a gradient
                    parameter.fill_(0.01)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(ids, shift_labels=ids, loss_weights=torch.ones(1, 40), use_cache=False)
        out.loss_sum.backward()
        sums = sum_over_ranks if share is None else lambda gradient: whole(gradient) * ranks
        found.append((out.loss_sum.item(), {n: sums(p.grad) for n, p in trained.items()}))
    (loss, expected), (spread_loss, gradients) = found
    errors = {n: ((gradients[n] - e).norm() / e.norm()).item() for n, e in expected.items()}
    dtypes = sorted({str(gradient.dtype) for gradient in gradients.values()})
    return {"losses": [loss, spread_loss], "errors": errors, "dtypes": dtypes}


def put_together():
    """Return whether rows that do not come out even, or not for each rank, come back in order."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for rows in (1, 2, 5):
        numbers = torch.arange(rows * 3.0).view(rows, 3)
        shared = distribute_tensor(numbers, mesh, [Shard(0)])
        if not torch.equal(whole(shared), numbers):
            return False
    return True


def main():
    """Run everything and leave the results beside the runs."""
    run("fsdp2", *HELD_OUT, *ASKED)
    run("continued", *HELD_OUT, f"train.resume={FOLDER / 'one' / 'checkpoint-2'}", UNWATCHED)
    run("ddp", "train.logging_steps=2", UNWATCHED, sharded=False)
    tiles = ("train.expert_tile=16", "train.activation_checkpointing=full")
    run("tiles", *HELD_OUT, *ASKED, *tiles, UNWATCHED)
    run("int8", *HELD_OUT, *PACKED)
    run("int8-host", *HELD_OUT, *PACKED, "model.head=cpu", UNWATCHED)
    run("int8-ddp", *HELD_OUT, *PACKED, "model.head=cpu", UNWATCHED, sharded=False)
    results = {"whole": gather_over_ranks(put_together()), "guard": guard()}
    results["bf16"] = gather_over_ranks(mixed_precision())
    results["memory"] = gather_over_ranks(memory())
    results["interrupted"] = gather_over_ranks(interrupted(run, FOLDER, [*MOVED, UNWATCHED]))
    results["nan"] = gather_over_ranks(ended_by(run, "nan", *POISONED))
    results["disconnected"] = gather_over_ranks(disconnected(run))
    if dist.get_rank() == 0:
        (FOLDER / "results.json").write_text(json.dumps(results))


main()
