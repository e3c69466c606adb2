"""Runs of grpo held to a reference, and runs that end when held-out rewards stand still."""

import json

import pytest

from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.run import train


def logged(run, name):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if name in line]


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["init_adapter", "base"])
def test_a_run_is_held_to_the_adapter_that_it_starts_from_or_to_the_base(
    grpo_recipe, whole, tmp_path, lucky, reference
):
    words = ["data.eval=null", "train.eval_steps=null", "train.keep_best=null"]
    words += ["method.updates=1", "method.kl_weight=0.1", "train.max_steps=2"]
    words += [f"lora.init_from={whole / 'adapter'}", f"train.output_dir={tmp_path / 'run'}"]
    if reference == "base":  # with lora.init_from the other is the default
        words.append("method.reference=base")
    run = train(load_recipe(grpo_recipe, words), environment="lucky:Luck").folder
    first, second = (line["kl_reference"] for line in logged(run, "kl_reference"))
    if reference == "init_adapter":
        assert abs(first) < 1e-12 < 1e-9 < second
    else:
        assert first > 1e-9 and second != first


@pytest.mark.slow
def test_a_run_whose_held_out_reward_gets_no_better_ends_early(grpo_recipe, tmp_path, lucky):
    stop = "train.early_stopping={metric: eval_reward, patience: 1}"
    words = ["train.eval_steps=1", "train.save_steps=null", "train.keep_best=null", stop]
    words += ["method.updates=1", "train.max_steps=4", f"train.output_dir={tmp_path / 'run'}"]
    # Luck rewards by the seed alone, and that of a held-out prompt is always the same.
    run = train(load_recipe(grpo_recipe, words), environment="lucky:Luck").folder
    rewards = {line["step"]: line["eval_reward"] for line in logged(run, "eval_reward")}
    made = len(logged(run, "loss"))
    assert len({rewards[step] for step in rewards}) == 1
    assert made == 2 < 4
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
