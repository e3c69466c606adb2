"""One rank of two: sample and replay inside DDP, then with FSDP2, rank 1 with less to do."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gptoss_tune.errors import MachineError
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.model.build import build
from gptoss_tune.model.parallel.sharding import Share
from gptoss_tune.recipe import load_recipe
from gptoss_tune.rollout.batched.sampler import BatchedSampler
from gptoss_tune.rollout.own import OwnSampler
from gptoss_tune.rollout.sampler import Request
from gptoss_tune.weights import open_checkpoint


def trained(model, request, found):
    """Return the loss of the answer with the sampler's experts, and a gradient's norm."""
    ids = torch.tensor([[*request.prompt, *found.token_ids]])
    weights = torch.zeros(ids.shape)
    weights[0, len(request.prompt) - 1 : -1] = 1
    choices = np.concatenate((found.choices, found.choices[-1:]))
    out = model(
        ids,
        shift_labels=ids.roll(-1, 1),
        loss_weights=weights,
        choices=torch.from_numpy(choices)[None],
        use_cache=False,
    )
    out.loss_sum.backward()
    return out.loss_sum.item()


def main(recipe_file: str, requests_file: str, out: str) -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    recipe = load_recipe(Path(recipe_file))
    base = open_checkpoint(recipe.model.name_or_path)
    requests = [Request(tuple(p), n, s) for p, n, s in json.loads(Path(requests_file).read_text())]
    mine, found = requests if rank == 0 else requests[:1], {}
    for name, share in (("ddp", None), ("fsdp2", Share(rank, size))):
        model = build(recipe, base, "cpu", share).model.train()
        if share is None:
            model = DistributedDataParallel(model, init_sync=False)
        own = OwnSampler(model, batch=2)
        answers = own.sample(mine, 1.0)
        if share is None:
            batched = BatchedSampler(model, batch=2).sample(mine, 1.0)
            assert [a.token_ids for a in batched] == [a.token_ids for a in answers]
        else:
            assert own.sample(mine if rank == 0 else [], 1.0)[0:1] != [] or rank == 1
            try:
                BatchedSampler(model, batch=2)
            except MachineError as error:
                found["refused"] = str(error)
            try:  # a signal to one rank alone ends the sampling of all
                own.sample(mine, 1.0, lambda: rank == 1)
            except Stopped:
                found["stopped"] = True
        found[name] = {
            "tokens": [answer.token_ids for answer in answers],
            "logps": [answer.logps.tolist() for answer in answers],
            "loss": trained(model, mine[0], answers[0]),
        }
        held = [p for p in model.parameters() if hasattr(p, "placements")]
        assert bool(held) == (share is not None), "what was gathered is given up again"
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
