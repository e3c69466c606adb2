"""A tiny base with a short window and an adapter on it, as training builds them, and prompts."""

import json

import pytest
import torch

from gptoss_tune.errors import MachineError
from gptoss_tune.model.build import build
from gptoss_tune.recipe import load_recipe, recipe_yaml
from gptoss_tune.rollout.batched.sampler import require_planner
from gptoss_tune.rollout.sampler import Request
from gptoss_tune.testing.tiny import tiny_checkpoint
from gptoss_tune.weights import open_checkpoint

SIZES = {"layers": 4, "experts": 8, "hidden": 64, "intermediate": 96}
LENGTHS = (3, 45, 37, 20)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Its window of 32 is shorter than some prompts, so decoding has to forget."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("samplers") / "base", seed=5, **SIZES)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": 32}))
    return folder


@pytest.fixture(scope="module")
def recipe_of(base, rows, tmp_path_factory):
    """Return a function from overrides to the file of a recipe on the base."""
    folder = tmp_path_factory.mktemp("recipes")

    def write(*overrides):
        path = folder / f"recipe-{len(list(folder.iterdir()))}.yaml"
        path.write_text(
            f"model: {{name_or_path: {base}, dtype: float32}}\n"
            f"lora: {{rank: 4, expert_rank: 2}}\n"
            f"data: {{train: {rows}, max_length: 256}}\n"
            f"train: {{output_dir: {folder}/run, max_steps: 4, activation_checkpointing: none}}\n",
            encoding="utf-8",
        )
        path.write_text(recipe_yaml(load_recipe(path, overrides)), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def make_tuned(base, recipe_of):
    """Return a function that builds the model of a recipe with random adapters."""

    def make(*overrides):
        recipe = load_recipe(recipe_of(*overrides))
        model = build(recipe, open_checkpoint(base), "cpu").model
        draws = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if "lora_" in name:
                    values = torch.randn(parameter.shape, generator=draws)
                    parameter.copy_(0.2 * values / parameter.shape[-1] ** 0.5)
        return model.train()

    return make


@pytest.fixture(scope="module")
def tuned(make_tuned):
    return make_tuned()


@pytest.fixture
def planner():
    """Skip where transformers is too old for continuous batching as it is asked for."""
    try:
        require_planner()
    except MachineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def requests_of():
    """Return a function that makes requests, shorter and longer than the window."""

    def make(max_new_tokens=8, lengths=LENGTHS):
        draws = torch.Generator().manual_seed(2)
        return [
            Request(
                tuple(torch.randint(0, 199_000, (length,), generator=draws).tolist()),
                max_new_tokens,
                seed=100 + number,
            )
            for number, length in enumerate(lengths)
        ]

    return make
