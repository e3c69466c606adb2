"""A run that is stopped or killed anywhere, also in its rollouts, ends as one that never was."""

import functools
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from gptoss_tune.errors import RunInterrupted
from gptoss_tune.recipe import load_recipe
from gptoss_tune.rollout.own import OwnSampler
from gptoss_tune.train.grpo.loss import GrpoLoss
from gptoss_tune.train.rollouts.ledger import Ledger
from gptoss_tune.train.run import train

_TIMES = ("second", "runtime", "memory", "epoch")


def lines(run):
    """Return the lines of metrics, without what is measured in seconds and bytes."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if not any(word in k for word in _TIMES)}
        for line in found
        if "train_runtime" not in line
    ]


def episodes(run):
    """Return the episodes of every step, without their seconds."""
    return {
        path.name: [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in path.read_text().splitlines()
        ]
        for path in (run / "rollouts").iterdir()
    }


def same(run, whole):
    """See that two runs played, learnt and measured the same."""
    assert episodes(run) == episodes(whole)
    assert lines(run) == lines(whole)
    for folder in ("adapter", "checkpoint-4"):
        mine, other = (load_file(r / folder / "adapter_model.safetensors") for r in (run, whole))
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)
    counts = [json.loads((r / "run.json").read_text())["rollouts"] for r in (run, whole)]
    assert counts[0] == counts[1]


def continued(recipe, run):
    return train(load_recipe(recipe, [f"train.output_dir={run}"]), environment="lucky:Luck")


# After 1 the rows of the next update are in the checkpoint, after 2 nothing is.
@pytest.mark.parametrize("step", [1, 2])
def test_a_killed_run_goes_on_with_the_same_bits(grpo_recipe, whole, stopped_at, lucky, step):
    run = stopped_at(step)
    assert (run / f"checkpoint-{step}" / "phase.safetensors").exists() == bool(step % 2)
    continued(grpo_recipe, run)
    same(run, whole)


def act_in_call(monkeypatch, number, act):
    """Let the sampler do ``act`` in its call of that number; return the list of all calls."""
    original, calls = OwnSampler.sample, []

    def sample(self, requests, temperature, should_stop=lambda: False):
        calls.append(temperature)
        if len(calls) == number:
            act()
        return original(self, requests, temperature, should_stop)

    monkeypatch.setattr(OwnSampler, "sample", sample)
    return calls


@pytest.mark.parametrize("change", ["method.kl_weight=0.1", "method.updates=1"])
def test_episodes_that_were_played_with_other_settings_are_not_trained(
    grpo_recipe, stopped_at, lucky, monkeypatch, capsys, change
):
    run, allowed = stopped_at(1), ["steps", "train.keep_best", "data.eval", "data.eval_rows"]
    batches, original = [], GrpoLoss.__call__

    def noted(self, model, inputs):
        batches.append(set(inputs))
        return original(self, model, inputs)

    monkeypatch.setattr(GrpoLoss, "__call__", noted)
    overrides = [f"train.output_dir={run}", "train.max_steps=2", "data.eval=null"]
    overrides += ["train.eval_steps=null", "train.keep_best=null", change]
    allowed.append(change.partition("=")[0])
    drawn = act_in_call(monkeypatch, 0, lambda: None)
    recipe = load_recipe(grpo_recipe, overrides)
    train(recipe, environment="lucky:Luck", allow_change=allowed)
    said = " ".join(capsys.readouterr().out.split())
    assert f"were played with other settings ({change.partition('=')[0]})" in said
    assert drawn and (run / "rollouts" / "step-2.jsonl").exists()
    assert batches
    assert all(("reference_logps" in one) == bool(recipe.method.kl_weight) for one in batches)
    assert all(("old_logps" in one) == (recipe.method.updates > 1) for one in batches)


@pytest.mark.slow
@pytest.mark.parametrize("phase", [1, 2])
def test_a_signal_in_the_rollouts_stops_at_once_and_costs_nothing(
    grpo_recipe, whole, tmp_path, lucky, monkeypatch, capfd, phase
):
    run = tmp_path / "run"
    # A call of the sampler is a group; the held-out prompts are one, before each phase.
    groups = {one["group"] for one in episodes(whole)["step-1.jsonl"]}
    at = 3 if phase == 1 else len(groups) + 4
    terminate = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
    calls = act_in_call(monkeypatch, at, terminate)
    with pytest.raises(RunInterrupted) as stopped:
        continued(grpo_recipe, run)
    assert len(calls) == at
    # Held-out prompts are played greedily.
    assert [n for n, drawn in enumerate(calls) if not drawn] == (
        [0] if phase == 1 else [0, 1 + len(groups)]
    )
    made = sorted(path.name for path in run.glob("checkpoint-*"))
    assert made == ([] if phase == 1 else ["checkpoint-1", "checkpoint-2"])
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    answer = capfd.readouterr().err
    assert "SIGTERM: leaving these rollouts, chunks of episodes that are over are kept" in answer
    assert ("a checkpoint is saved" in answer) == (phase == 2)
    assert ("before its first step; chunks of" if phase == 1 else "checkpoint-2 is") in str(
        stopped.value
    )
    kept = sorted((run / ".rollouts").iterdir())
    assert kept and all(path.suffix == ".safetensors" for path in kept)
    calls.clear()
    monkeypatch.undo()
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    read, original = [], Ledger.read

    def counted(self, number, key):
        found = original(self, number, key)
        read.append(found is not None)
        return found

    monkeypatch.setattr(Ledger, "read", counted)
    continued(grpo_recipe, run)
    assert sum(read) == len(kept)
    same(run, whole)
    assert not (run / ".rollouts").exists()


def test_a_signal_in_the_first_evaluation_promises_nothing(
    grpo_recipe, tmp_path, lucky, monkeypatch, capfd
):
    run = tmp_path / "run"
    act_in_call(monkeypatch, 1, functools.partial(os.kill, os.getpid(), signal.SIGTERM))
    with pytest.raises(RunInterrupted, match="no episode of training was played yet"):
        continued(grpo_recipe, run)
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("stopped", 0)
    answer = capfd.readouterr().err
    assert "SIGTERM: leaving the first evaluation; no step was made" in answer
    assert "checkpoint" not in answer


def test_a_chunk_of_other_weights_or_a_damaged_one_is_played_again(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    ledger.open("a" * 64)
    ledger.write(0, "key", [])
    assert ledger.read(0, "key") == []
    assert ledger.read(0, "another key") is None
    path = next((tmp_path / "ledger").iterdir())
    path.write_bytes(path.read_bytes()[:-3] + b"\0\0\0")
    assert ledger.read(0, "key") is None
    ledger.write(0, "key", [])
    ledger.open("b" * 64)  # another phase
    assert not list((tmp_path / "ledger").iterdir())
