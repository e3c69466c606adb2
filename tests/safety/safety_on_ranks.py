"""One rank of two: an evaluation with its judge, which the first rank asks; rank 0 writes it."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from gptoss_tune.errors import MachineError
from gptoss_tune.evaluate.generate import Stopped
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.model.build import build
from gptoss_tune.recipe import load_recipe
from gptoss_tune.safety.evaluator import SafetyEvaluator
from gptoss_tune.weights import open_checkpoint


def main(recipe_file: str, out: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    recipe = load_recipe(Path(recipe_file))
    base = open_checkpoint(recipe.model.name_or_path)
    vocabulary = load_vocabulary(base.path)
    dead = recipe.evaluation.model_dump()
    dead["safety"]["judge"]["url"] = "http://127.0.0.1:9"
    found = {}
    try:  # rank 0 alone asks; both leave
        section = type(recipe.evaluation).model_validate(dead)
        SafetyEvaluator(section, recipe.data, vocabulary, seed=0)
    except MachineError:
        found["dead"] = True
    evaluator = SafetyEvaluator(recipe.evaluation, recipe.data, vocabulary, seed=0)
    model = build(recipe, base, "cpu").model
    place = {"step": 0, "device": torch.device("cpu")}
    asked = [0]

    def stop():
        asked[0] += 1
        return rank == 1 and asked[0] > 3

    try:  # a signal to one rank alone ends the evaluation of all
        evaluator.run(model, **place, should_stop=stop)
    except Stopped:
        found["stopped"] = True
    found["report"] = evaluator.run(model, **place)
    Path(f"{out}.{rank}").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
