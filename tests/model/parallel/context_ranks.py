"""What each rank does for ``test_context_parallel.py``; one launch for all cases of a number.

    context_ranks.py RECIPE FOLDER

Alone in the world it computes the whole row: what the others are held against.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from gptoss_kernels.attention import context_parallel
from gptoss_kernels.attention.shards import RowShard

from gptoss_tune.model import activation_checkpointing
from gptoss_tune.model.build import build
from gptoss_tune.model.parallel.context import set_context_parallel
from gptoss_tune.model.parallel.sharding import Share, share_of, whole
from gptoss_tune.recipe import load_recipe
from gptoss_tune.weights import open_checkpoint

RECIPE, FOLDER = sys.argv[1], Path(sys.argv[2])
RANKS, RANK = (int(os.environ.get(name, "0")) for name in ("WORLD_SIZE", "RANK"))
LOGITS_OF = 8
"""Logits are kept of every eighth token."""


def row(lengths, weighted):
    """Return tokens, positions, labels and weights of a packed row, the last document padding."""
    length = sum(lengths)
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, 199_000, (1, length), generator=generator)
    weights = torch.rand(1, length, generator=generator) + 0.5
    weights[torch.rand(1, length, generator=generator) < 0.7] = 0
    weights[:, length - lengths[-1] :] = 0
    if weighted is not None:
        weights[:, weighted[0] : weighted[1]] = 0
    return {
        "input_ids": tokens,
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "shift_labels": tokens.roll(-1, dims=1),
        "loss_weights": weights,
    }


def model_of(case):
    """Return the case's model, its adapters at random."""
    recipe = load_recipe(RECIPE, case["overrides"])
    share = Share(RANK, RANKS) if RANKS and case["sharded"] else None
    base = open_checkpoint(recipe.model.name_or_path)
    model = build(recipe, base, "cpu", share).model.train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                values = torch.randn(parameter.shape, generator=generator)
                values = 0.2 * values / parameter.shape[-1] ** 0.5
                mine = values.chunk(RANKS)[RANK] if share is not None else values
                share_of(parameter.detach()).copy_(mine)
    for name, parameter in model.named_parameters():
        if name.endswith("self_attn.sinks"):
            parameter.requires_grad_(case["sinks"])
    return model


def run(case):
    """Return what this rank computes: logits, loss and gradients, and how often it fetched."""
    activation_checkpointing.KEEP_ATTENTION_FROM = case["keep_from"]
    inputs, fetched = row(case["lengths"], case["without_loss"]), []
    model = model_of(case)
    if RANKS:
        mine = RowShard(inputs["input_ids"].shape[1], RANKS, RANK).indices()
        inputs = {name: value[:, mine] for name, value in inputs.items()}
        set_context_parallel(model, dist.group.WORLD)
        original = context_parallel._fetch
        context_parallel._fetch = lambda *a: fetched.append(a[3]) or original(*a)
    found = {}
    if case["logits"]:
        with torch.no_grad():
            tokens = {name: inputs[name] for name in ("input_ids", "position_ids")}
            found["logits"] = model(**tokens, use_cache=False).logits[:, ::LOGITS_OF]
            fetched.clear()
    out = model(**inputs, use_cache=False)
    out.loss_sum.backward()
    if RANKS:
        context_parallel._fetch = original
    found["loss"] = out.loss_sum.detach()
    found["token_losses"] = out.token_losses
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # FSDP2 leaves every rank a part of their mean: together, and added up, that is their sum.
    found["grads"] = {n: whole(p.grad) for n, p in trained.items() if p.grad is not None}
    found["without"] = sorted(n for n, p in trained.items() if p.grad is None)
    found["fetched"] = fetched
    if RANKS and case["logits"]:  # switched off, the model takes whole rows again
        set_context_parallel(model, None)
        with torch.no_grad():
            found["off"] = model(torch.arange(9)[None], use_cache=False).logits[..., :100]
    elif case["logits"]:
        with torch.no_grad():
            found["off"] = model(torch.arange(9)[None], use_cache=False).logits[..., :100]
    return found


def main():
    if RANKS:
        dist.init_process_group("gloo")
    cases = json.loads((FOLDER / "cases.json").read_text())
    found = {name: run(case) for name, case in cases.items()}
    torch.save(found, FOLDER / f"{max(RANKS, 1)}-{RANK}.pt")
    if RANKS:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
