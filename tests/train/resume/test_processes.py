"""A run continued on more processes, and on fewer again: the same rows, the same losses."""

import json

import pytest

from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.run import train
from gptoss_tune.train.sft import WeightedSftTrainer


class Killed(BaseException):
    """Stands for a process that dies after a save."""


def train_until(step, recipe_file, overrides):
    """Train in this process; die once the checkpoint of ``step`` is there."""
    original = WeightedSftTrainer._save_checkpoint

    def save(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.state.global_step == step:
            raise Killed

    WeightedSftTrainer._save_checkpoint = save
    try:
        train(load_recipe(recipe_file, overrides))
    except Killed:
        pass
    finally:
        WeightedSftTrainer._save_checkpoint = original


def lines(run):
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in found if "loss" in line}


@pytest.fixture
def packed(recipe_file, rows, tmp_path):
    """A recipe of 5 packed rows, 4 a step: the second step of an epoch has one row."""
    text = rows.read_text(encoding="utf-8").splitlines()
    data = tmp_path / "packed.jsonl"
    data.write_text("\n".join(text + text[:3]) + "\n", encoding="utf-8")
    settings = [f"data.train={data}", "data.packing=true", "data.max_length=240"]
    return [*settings, "train.max_steps=4", "train.save_steps=1"]


@pytest.mark.slow
def test_one_process_then_two_then_one_give_the_losses_of_one(
    recipe_file, packed, on_ranks, tmp_path
):
    def batch(rows, accumulation):
        return [
            f"train.per_device_train_batch_size={rows}",
            f"train.gradient_accumulation_steps={accumulation}",
        ]

    whole = tmp_path / "whole"
    train_until(4, recipe_file, [*packed, f"train.output_dir={whole}", *batch(2, 2)])
    parts = [*packed, f"train.output_dir={tmp_path / 'parts'}"]
    train_until(1, recipe_file, [*parts, *batch(2, 2)])
    assert on_ranks(2, train_until, 3, recipe_file, [*parts, *batch(1, 2)]) == [0, 0]
    train_until(4, recipe_file, [*parts, *batch(4, 1)])
    expected, actual = lines(whole), lines(tmp_path / "parts")
    assert list(actual) == list(expected) == [1, 2, 3, 4]
    for step, line in expected.items():
        # fp32 sums in another order; Adam's division lets it grow from step to step.
        assert actual[step]["loss"] == pytest.approx(line["loss"], rel=2e-5 * step)
        assert actual[step]["learning_rate"] == line["learning_rate"]
        counted = {name for name in line if name.endswith("tokens")}
        assert counted and {n: actual[step][n] for n in counted} == {n: line[n] for n in counted}
    assert expected[1]["trained_tokens"] > 2 * expected[2]["trained_tokens"], "a short last step"
    record = json.loads((tmp_path / "parts" / "run.json").read_text())
    assert [(one["step"], one["name"], one["was"], one["now"]) for one in record["changes"]] == [
        (1, "processes", 1, 2),
        (3, "processes", 2, 1),
    ]
    ranks = json.loads((tmp_path / "parts" / "checkpoint-3" / "random.json").read_text())["ranks"]
    assert len(ranks) == 2
