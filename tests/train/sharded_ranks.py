"""What each of two ranks does for ``test_sharded.py``; started by torchrun, writes what it saw.

    torchrun --nproc_per_node 2 sharded_ranks.py RECIPE FOLDER

One launch for all of it: importing the libraries takes longer than the runs.
"""

import gc
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState

from gptoss_tune.checkpoint import open_checkpoint
from gptoss_tune.errors import RunInterrupted
from gptoss_tune.model.build import build
from gptoss_tune.model.holdings import holdings
from gptoss_tune.model.sharding import Share, share_of
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.collective import gather_over_ranks
from gptoss_tune.train.run import train
from gptoss_tune.train.trainability import Trainability

RECIPE, FOLDER = sys.argv[1], Path(sys.argv[2])
UNWATCHED = "guard.check_steps=0"


def run(name, *overrides, sharded=True):
    """Train into ``FOLDER/name`` as a launcher with or without FSDP2 would start it."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    os.environ["ACCELERATE_USE_FSDP"] = str(sharded).lower()
    os.environ["FSDP_VERSION"] = "2"
    batch = ["train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=2"]
    return train(load_recipe(RECIPE, [f"train.output_dir={FOLDER / name}", *batch, *overrides]))


def packed_bytes():
    """Return the bytes of all byte tensors alive in this process, each storage once."""
    found = [
        entry.untyped_storage()
        for entry in gc.get_objects()
        if type(entry) is torch.Tensor and entry.dtype == torch.uint8 and entry.device.type == "cpu"
    ]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


def memory():
    """Return what this rank holds of a model with four layers: at rest, and while it computes."""
    recipe = load_recipe(RECIPE, [f"model.name_or_path={FOLDER / 'four'}"])
    before = packed_bytes()
    share = Share(dist.get_rank(), dist.get_world_size())
    model = build(recipe, open_checkpoint(recipe.model.name_or_path), "cpu", share).model
    at_rest, seen = packed_bytes() - before, []
    kinds: dict[str, int] = {}
    for row in holdings(model):
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
    watch = Trainability(model)
    first = dist.get_rank() == 0
    named = dict(model.named_parameters())
    adapter = next(p for n, p in named.items() if ".mlp.experts." in n and "lora_A" in n)
    watched = next(w for w in watch._trained.values() if w.parameter is adapter)
    watched.had_gradient = watched.needs_gradient = torch.tensor(True)
    still = gather_over_ranks(watch.verdict())
    with torch.no_grad():
        if first:  # experts of the other rank got no token: its share stays, and that is right
            adapter.to_local()[0, 0] += 1.0
    sound = gather_over_ranks(watch.verdict())
    if not first:
        stack = next(p for n, p in named.items() if "layers.1" in n and n.endswith(".down_proj"))
        share_of(stack).stored.blocks[-1, -1, -1, -1] ^= 1
    moved = gather_over_ranks(watch.verdict())
    watch.close()
    return {"still": still, "sound": sound, "moved": moved}


def interrupted():
    """Stop a run by a signal to the second rank; return what it ended with."""

    def kill_after_the_first_step():
        metrics = FOLDER / "stopped" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    if dist.get_rank() == 1:
        threading.Thread(target=kill_after_the_first_step, daemon=True).start()
    try:
        run("stopped", "train.max_steps=4", "train.checkpointing=full", UNWATCHED)
    except RunInterrupted as stopped:
        return stopped.exit_code
    return 0


def main():
    """Run everything and leave the results beside the runs."""
    rows = load_recipe(RECIPE, []).data.train[0].path
    evaluated = [f"data.eval={rows}", "train.eval_steps=2", "train.save_steps=2"]
    run("fsdp2", "train.max_steps=4", *evaluated)
    ours = f"train.resume={FOLDER / 'one' / 'checkpoint-2'}"
    run("continued", "train.max_steps=4", *evaluated, ours, UNWATCHED)
    bf16 = ["model.dtype=bfloat16", "train.max_steps=2", UNWATCHED]
    run("bf16-ddp", *bf16, sharded=False)
    run("bf16-fsdp2", *bf16, "train.checkpointing=selective")
    moved = ["model.embeddings=cpu", "train.checkpointing=offload", "train.max_steps=2", UNWATCHED]
    run("dense", "model.experts_precision=bf16", *moved)
    results = {"guard": guard(), "memory": gather_over_ranks(memory()), "code": interrupted()}
    if dist.get_rank() == 0:
        (FOLDER / "results.json").write_text(json.dumps(results))


main()
