"""One tiny run of grpo that was never stopped, and a recipe for others of it."""

import json
import shutil
from pathlib import Path

import pytest

from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.run import train

SMALL = ["method.updates=1", "method.dynamic_sampling=false", "data.eval=null"]
SMALL += [
    "train.eval_steps=null",
    "train.keep_best=null",
    "train.max_steps=1",
    "train.save_steps=null",
]


@pytest.fixture(scope="session")
def lucky():
    """Let the environments of these tests be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield


@pytest.fixture(scope="session")
def grpo_recipe(base, tmp_path_factory):
    """A recipe's file: two updates on each batch of episodes, prompts without signal replaced."""
    folder = tmp_path_factory.mktemp("grpo")
    rows = [json.dumps({"prompt": f"What is {n}?" + " Please." * (n % 3)}) + "\n" for n in range(7)]
    (folder / "train.jsonl").write_text("".join(rows[:5]))
    (folder / "eval.jsonl").write_text("".join(rows[5:]))
    path = folder / "recipe.yaml"
    path.write_text(
        f"""
model: {{name_or_path: {base}, dtype: float32}}
lora: {{rank: 4, expert_rank: 2}}
method:
  name: grpo
  prompts_per_step: 2
  group_size: 3
  updates: 2
  max_new_tokens: 6
  rollout_batch: 3
  overlong: counted
  dynamic_sampling: true
  max_resampling: 3
  rewards: {{luck: 1}}
data: {{train: {folder / "train.jsonl"}, eval: {folder / "eval.jsonl"}, max_length: 160}}
train:
  output_dir: {folder / "whole"}
  max_steps: 4
  save_steps: 1
  eval_steps: 2
  save_total_limit: 9
  keep_best: eval_reward
  learning_rate: 2e-2
  activation_checkpointing: none
"""
    )
    return path


@pytest.fixture(scope="session")
def whole(grpo_recipe, lucky):
    """The folder of the run that was never stopped."""
    return train(load_recipe(grpo_recipe), environment="lucky:Luck").folder


@pytest.fixture
def small(grpo_recipe, tmp_path):
    """Return a function from overrides to a recipe of one step in a folder of its own."""
    own = [*SMALL, f"train.output_dir={tmp_path / 'run'}"]
    return lambda *overrides: load_recipe(grpo_recipe, [*own, *overrides])


@pytest.fixture
def stopped_at(whole, tmp_path):
    """Return a function that copies the run as it was when it was killed after a checkpoint."""

    def copy(step, folder="run"):
        run = tmp_path / folder
        shutil.copytree(whole, run)
        shutil.rmtree(run / "adapter")
        for path in run.glob("checkpoint-*"):
            if int(path.name.partition("-")[2]) > step:
                shutil.rmtree(path)
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
        return run

    return copy
