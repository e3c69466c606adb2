"""Runs of grpo: what is played, learnt, counted, measured on held-out prompts, and refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gptoss_tune.environments.environment import Rewards
from gptoss_tune.errors import GuardError, RecipeError
from gptoss_tune.recipe import load_recipe
from gptoss_tune.rollout.own import OwnSampler
from gptoss_tune.train.grpo_trainer import GrpoTrainer
from gptoss_tune.train.rollouts.played import finite
from gptoss_tune.train.run import train


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def played(run, step, split="train"):
    path = run / "rollouts" / f"step-{step}.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [one for one in found if one["split"] == split]


def test_a_phase_replaces_groups_without_signal_and_counts_them(whole):
    groups = {}
    for one in played(whole, 1):
        groups.setdefault(one["group"], []).append(one)
    assert all([one["index"] for one in group] == [0, 1, 2] for group in groups.values())
    rewards = {n: [one["rewards"]["total"] for one in group] for n, group in groups.items()}
    told = [len(set(values)) > 1 for values in rewards.values()]
    assert sum(told) >= 4 and not all(told)  # 2 updates of 2 groups, and some were the same
    assert list(groups) == list(range(len(groups)))
    for group in groups.values():
        advantages = np.array([one["advantage"] for one in group])
        assert math.isclose(advantages.sum(), 0, abs_tol=1e-9)
        totals = np.array([one["rewards"]["total"] for one in group])
        expected = (totals - totals.mean()) / (totals.std(ddof=1) + 1e-4) if totals.std() else 0
        np.testing.assert_allclose(advantages, expected, atol=1e-9)
    first = next(line for line in logged(whole) if "loss" in line)
    assert first["resampled"] == len(groups) - 4
    assert first["groups_without_signal"] == pytest.approx(1 - sum(told) / len(told))
    totals = [value for values in rewards.values() for value in values]
    assert first["reward"] == first["reward_luck"] == pytest.approx(np.mean(totals))
    assert first["trained_tokens"] == 2 * 3 * 6


def test_prompts_are_in_an_order_of_the_seed_and_every_one_comes(whole):
    tasks = [one["task"] for step in (1, 3) for one in played(whole, step) if not one["index"]]
    assert sorted(tasks[:5]) == [0, 1, 2, 3, 4] != tasks[:5]


def test_the_second_update_is_off_policy_and_has_the_logps_of_before(whole):
    training = [line for line in logged(whole) if "loss" in line]
    # The sampler drew before both updates, and what it computed is compared with that.
    assert all(line["mismatch_kl"] < 1e-9 for line in training)
    assert training[0]["clipped_share"] == 0
    assert "reward" not in training[1] and "reward" in training[2]


def test_held_out_prompts_are_played_greedily(whole):
    found = [line for line in logged(whole) if "eval_reward" in line]
    assert [line["step"] for line in found] == [0, 2, 4]  # before the first step, too
    for line in found:
        held_out = played(whole, line["step"], "eval")
        assert [one["task"] for one in held_out] == [0, 1]
        assert line["eval_reward"] == np.mean([one["rewards"]["total"] for one in held_out])
        assert line["eval_episode_tokens"] == 6
        assert (line["eval_cut_off_share"], line["eval_failed_rewards"]) == (1, 0)
    record = json.loads((whole / "run.json").read_text())
    assert record["rollouts"]["environment"] == "lucky:Luck"
    assert record["rollouts"]["sampler"] == "own"
    assert record["rollouts"]["held_out"] == {"step": 4, "failed_rewards": 0}
    assert record["fingerprint"]["environment"].startswith("lucky:Luck, sha256 ")
    trained = sum(len(played(whole, step)) for step in (1, 3))
    assert record["rollouts"]["episodes"] == trained
    assert record["rollouts"]["tokens"] == trained * 6


def test_the_best_weights_are_chosen_by_the_reward_of_held_out_prompts(whole):
    measured = [row for row in logged(whole) if "eval_reward" in row]
    rewards = {row["step"]: row["eval_reward"] for row in measured if row["step"]}
    best = json.loads((whole / "run.json").read_text())["best"]
    assert (best["metric"], best["goal"]) == ("eval_reward", "max")
    assert best["step"] == min(step for step, r in rewards.items() if r == max(rewards.values()))
    assert best["value"] == max(rewards.values())
    mine, chosen = (
        (whole / folder / "adapter_model.safetensors").read_bytes()
        for folder in ("adapter", f"checkpoint-{best['step']}")
    )
    assert mine == chosen


@pytest.mark.parametrize(
    ("added", "said"),
    [
        # k3 of a log-ratio of 0.5: exp(0.5) - 1 - 0.5
        (-0.5, "step 1: the KL of sampler and trainer is 0.149 nats a token"),
        (math.nan, "step 1: the sampler gave log-probabilities of drawn tokens that are not"),
    ],
)
def test_a_mismatch_beyond_its_bound_stops_the_run_without_an_update(
    small, lucky, monkeypatch, added, said
):
    original = OwnSampler.sample

    def other_weights(self, *args):
        return [
            type(one)(one.token_ids, one.logps + np.float32(added), one.choices, one.version)
            for one in original(self, *args)
        ]

    monkeypatch.setattr(OwnSampler, "sample", other_weights)
    recipe = small()
    with pytest.raises(GuardError) as stopped:
        train(recipe, environment="lucky:Luck")
    assert said in str(stopped.value)
    assert "method.mismatch_kl_limit" in str(stopped.value)
    record = json.loads((Path(recipe.train.output_dir) / "run.json").read_text())
    assert record["status"] == "stopped by the guard"


def test_a_step_that_the_trainer_computes_as_nan_is_left_out(
    grpo_recipe, tmp_path, lucky, monkeypatch
):
    original = GrpoTrainer.loss_of

    def poisoned(self, model, inputs, batch_only):
        if self.state.global_step:
            return original(self, model, inputs, batch_only)
        norm = self.accelerator.unwrap_model(model).get_base_model().model.norm
        spoiled = norm.register_forward_hook(lambda module, given, output: output * math.nan)
        try:
            return original(self, model, inputs, batch_only)
        finally:
            spoiled.remove()

    monkeypatch.setattr(GrpoTrainer, "loss_of", poisoned)
    settings = {"max_steps": 2, "logging_steps": 2, "output_dir": tmp_path / "run"}
    settings |= dict.fromkeys(("eval_steps", "keep_best", "save_steps"), "null")
    words = [f"train.{name}={value}" for name, value in settings.items()]
    recipe = load_recipe(grpo_recipe, [*words, "data.eval=null", "method.updates=1"])
    run = train(recipe, environment="lucky:Luck").folder
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished" and record["guard"]["skipped_steps"] == 1
    (line,) = [line for line in logged(run) if "mismatch_kl" in line]
    assert line["step"] == 2 and line["mismatch_kl"] < 1e-6 and math.isfinite(line["loss"])


def test_rewards_that_are_no_numbers_count_as_failed(small, lucky):
    run = train(small("method.prompts_per_step=4"), environment="lucky:Odd").folder
    found = [one["rewards"] for one in played(run, 1)]
    failed = [one for one in found if one["failed"]]
    assert 0 < len(failed) < len(found)
    assert all(one["total"] == 0 for one in failed)
    assert all(math.isfinite(one["total"]) for one in found)
    record = json.loads((run / "run.json").read_text())["rollouts"]
    assert record["failed_rewards"] == sum(len(one["failed"]) for one in found)


def test_a_run_without_any_signal_says_so(small, lucky):
    with pytest.raises(GuardError, match="no group of episodes had rewards that differ"):
        train(small(), environment="lucky:Same")


def test_cut_answers_are_left_out_of_training_and_not_of_the_counts(small, lucky):
    # Every answer of this base is cut: nothing is left to train, though rewards differ.
    with pytest.raises(GuardError, match="no episode was left to train on") as stopped:
        train(small("method.overlong=masked"), environment="lucky:Luck")
    assert "raise method.max_new_tokens" in str(stopped.value)
    assert "rewards that differ" not in str(stopped.value)


def test_an_environment_beside_another_method_is_refused(recipe, lucky):
    with pytest.raises(RecipeError, match="plays no episodes"):
        train(recipe(), environment="lucky:Luck")


def test_a_sum_that_is_no_number_counts_as_failed():
    kept = finite(Rewards(1.0, {"luck": 1.0}))
    assert kept == Rewards(1.0, {"luck": 1.0})
    lost = finite(Rewards(math.nan, {"luck": math.nan, "format": 1.0}, {"calls": "hung"}))
    assert (lost.total, lost.components) == (0.0, {"luck": 0.0, "format": 1.0})
    assert lost.failed.keys() == {"luck", "calls"}
    assert finite(Rewards(math.inf, {"luck": 1.0})).failed.keys() == {"total"}
