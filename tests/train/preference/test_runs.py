"""Runs of preference methods: what is learnt, packing, resume, other data."""

import json
import shutil

import numpy as np
import pytest
import torch
from preference_runs import adapter, lines, unfinish, written

from gptoss_tune.errors import RecipeError
from gptoss_tune.train.run import train


@pytest.mark.slow
def test_a_preference_is_learnt_and_its_likelihood_does_not_collapse(dpo):
    _, folder = dpo
    trained, held_out = lines(folder)
    assert abs(trained[0]["reward_margin"]) < 1e-4  # it starts as the reference
    at_start = np.log(2) - 0.2 * trained[0]["logp_chosen"]
    assert trained[0]["loss"] == pytest.approx(at_start, rel=0.1)
    last = held_out[-1]
    assert last["eval_reward_accuracy"] == 1.0 and last["eval_reward_margin"] > 1
    assert last["eval_logp_drift_chosen"] > 0
    parts = [last[f"eval_reward_margin_{name}"] for name in ("analysis", "final")]
    assert sum(parts) == pytest.approx(last["eval_reward_margin"], rel=1e-6)
    assert last["eval_reference_kl"] > trained[0]["reference_kl"] >= 0
    shown = json.loads((folder / "pairs.json").read_text())
    assert shown["split"] == "eval" and shown["reference"] == "base" and len(shown["pairs"]) == 8
    assert {one["source"].rpartition(":")[2] for one in shown["pairs"]} == set("12345678")
    for one in shown["pairs"]:
        assert "offers" in one["prompt"]
        assert one["chosen"]["text"]["final"] in ("Yes, gladly.", "Gladly, yes.")
        gained = [one[side]["after"] - one[side]["before"] for side in ("chosen", "rejected")]
        assert gained[0] > gained[1]


@pytest.mark.gpu
def test_a_preference_is_learnt_in_bfloat16(recipe_of):
    """Both passes through the head, and that of the reference, round alike: it starts at 0."""
    trained, held_out = lines(train(recipe_of("dpo", "model.dtype=bfloat16")).folder)
    assert abs(trained[0]["reward_margin"]) < 0.05
    assert held_out[-1]["eval_reward_accuracy"] == 1.0 and held_out[-1]["eval_reward_margin"] > 1


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(dpo, recipe_of, tmp_path):
    recipe, folder = dpo
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    for name in ("checkpoint-6", "checkpoint-8"):
        shutil.rmtree(run / name, ignore_errors=True)
    unfinish(run)
    train(recipe.with_settings({"train.output_dir": str(run)}))
    for name, tensor in adapter(folder).items():
        assert torch.equal(adapter(run)[name], tensor), name
    expected, actual = lines(folder), lines(run)
    timed = ("tokens_per_second", "seconds_per_step", "memory_gib", "eval_runtime")
    for before, after in zip(expected[0], actual[0], strict=True):
        for key in before.keys() - set(timed):
            assert before[key] == after[key], key
    record = json.loads((run / "run.json").read_text())
    assert record["reference"]["cached"] and record["reference"]["of"] == "base"


@pytest.mark.slow
def test_packed_rows_give_the_losses_of_rows_of_one_pair(recipe_of):
    """All pairs in each step, so that both see the same."""
    common = ["train.max_steps=3", "data.eval=null"]
    packed = train(recipe_of("dpo", *common, "train.per_device_train_batch_size=24"))
    alone = train(
        recipe_of(
            "dpo",
            *common,
            "data.packing=false",
            "train.per_device_train_batch_size=4",
            "train.gradient_accumulation_steps=6",
        )
    )
    for one, other in zip(lines(packed.folder)[0], lines(alone.folder)[0], strict=True):
        for name in ("loss", "reward_margin", "grad_norm", "logp_chosen", "reference_kl"):
            assert one[name] == pytest.approx(other[name], rel=2e-5, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, overrides, kind",
    [
        ("ipo", [], "pairs"),
        ("simpo", [], "pairs"),
        ("orpo", ["method.beta=1"], "pairs"),
        ("kto", ["method.beta=0.5"], "labels"),
        ("dpo", ["lora.merge_aware=true"], "pairs"),
        ("dpo", ["method.analysis=ignored"], "pairs"),
    ],
)
def test_every_method_learns_the_rule(recipe_of, method, overrides, kind):
    folder = train(recipe_of(method, *overrides, kind=kind)).folder
    trained, held_out = lines(folder)
    first, last = trained[0], held_out[-1]
    assert last["eval_reward_margin"] > max(0.05, 2 * first["reward_margin"])
    if kind == "pairs":
        assert last["eval_reward_accuracy"] == 1.0
        assert last["eval_loss"] < first["loss"]
    else:
        assert "eval_reward_accuracy" not in last and last["eval_kl_estimate"] >= 0
        assert "kl_estimate" in trained[-1]
    assert ("eval_reference_kl" in last) == (method not in ("simpo", "orpo"))
    if overrides == ["method.analysis=ignored"]:
        assert "reward_margin_analysis" not in trained[-1]


@pytest.mark.slow
def test_swapped_labels_are_other_data(recipe_of, preference_data, tmp_path):
    """A label changes no token: the fingerprint has to see it."""
    recipe = recipe_of("kto", "train.max_steps=2", "train.save_steps=1", kind="labels")
    folder = train(recipe).folder
    shutil.rmtree(folder / "checkpoint-2")
    unfinish(folder)
    rows = [json.loads(line) for line in preference_data["labels"].read_text().splitlines()]
    for row in rows:
        row["label"] = not row["label"]
    flipped = written(tmp_path / "flipped.jsonl", rows)
    values = recipe.model_dump()
    values["data"]["train"] = [{"path": str(flipped)}]
    with pytest.raises(RecipeError, match=r"data\.train_rows"):
        train(type(recipe).model_validate(values))


@pytest.mark.slow
def test_the_kl_term_of_an_evaluation_is_that_of_the_whole_set(recipe_of):
    """It depends on no micro-batch, and the figure of the training is the training's alone."""
    common = ["data.packing=false", "method.beta=0.5", "train.max_steps=4", "train.eval_steps=2"]

    def evaluated(rows):
        sizes = [
            f"train.per_device_train_batch_size={rows}",
            f"train.gradient_accumulation_steps={8 // rows}",
        ]
        return lines(train(recipe_of("kto", *common, *sizes, kind="labels")).folder)

    (trained, held_out), (again, other) = evaluated(8), evaluated(2)
    assert held_out[-1]["eval_kl_estimate"] > 0.1
    for one, two in zip([*trained, *held_out], [*again, *other], strict=True):
        for name in ("loss", "kl_estimate", "eval_loss", "eval_kl_estimate"):
            if name in one:
                assert two[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name
