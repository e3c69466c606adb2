"""One rank of two: evaluate with a whole copy each, then spread with FSDP2; rank 0 writes both."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from gptoss_tune.evaluate.evaluator import Evaluator
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.model.build import build
from gptoss_tune.model.parallel.sharding import Share, is_sharded
from gptoss_tune.recipe import load_recipe
from gptoss_tune.weights import open_checkpoint


def main(recipe_file: str, out: str) -> None:
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    recipe = load_recipe(Path(recipe_file))
    base = open_checkpoint(recipe.model.name_or_path)
    found = {}
    for name, share in (("whole", None), ("spread", Share(rank, size))):
        model = build(recipe, base, "cpu", share).model
        assert is_sharded(model) == (share is not None)
        evaluator = Evaluator(
            recipe.evaluation, recipe.data, load_vocabulary(base.path), seed=recipe.train.seed
        )
        place = {"step": 0, "device": torch.device("cpu")}
        try:  # a signal to one rank alone ends the evaluation of all
            evaluator.run(model, **place, should_stop=lambda: rank == 1)
        except Stopped:
            found[f"{name}, stopped"] = True
        found[name] = evaluator.run(model, **place)
        held = [p for p in model.parameters() if hasattr(p, "placements")]
        assert bool(held) == (share is not None), "what was gathered is given up again"
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
