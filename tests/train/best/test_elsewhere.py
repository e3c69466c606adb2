"""A run that goes on in another folder, whose best weights and patience are its own."""

import json
import os
import re
import shlex
import signal

import pytest
from safetensors.torch import load_file

from gptoss_tune.errors import RecipeError, RunInterrupted
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.run import train
from gptoss_tune.train.trainer import MethodTrainer


def record(run):
    return json.loads((run / "run.json").read_text())


def stopped_in(train_it, step):
    """Train, and be told to stop in the evaluation at a step."""
    original = MethodTrainer.evaluation_loop

    def loop(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MethodTrainer, "evaluation_loop", loop)
        with pytest.raises(RunInterrupted) as ended:
            train_it()
    return str(ended.value)


@pytest.fixture(scope="module")
def owing(write_recipe, overfitting, tmp_path_factory):
    """A recipe, its overrides, and the run that a signal ended in its best evaluation."""
    folder = tmp_path_factory.mktemp("owing")
    path, run = write_recipe(folder), folder / "run"
    stopped_in(lambda: train(load_recipe(path, overfitting)), 3)
    assert json.loads((run / "checkpoint-3" / "best.json").read_text())["owed"] == ["held_out"]
    return path, overfitting, run


def elsewhere(owing, run, resume=None):
    path, overrides, before = owing
    resume = resume or before / "checkpoint-3"
    train(load_recipe(path, [*overrides, f"train.output_dir={run}", f"train.resume={resume}"]))


def assert_whole(run, before):
    """The checkpoint is the first run's but for what the evaluation says, and is published."""
    found = record(run)
    assert (found["status"], found["steps"], found["best"]["step"]) == ("finished", 5, 3)
    there = {p.name for p in (before / "checkpoint-3").iterdir()}
    assert {p.name for p in (run / "checkpoint-3").iterdir()} == there
    for name in there - {"best.json", "manifest.json", "trainer_state.json"}:
        first, second = (folder / "checkpoint-3" / name for folder in (before, run))
        assert first.read_bytes() == second.read_bytes(), name
    ours, published = (
        load_file(run / name / "adapter_model.safetensors") for name in ("checkpoint-3", "adapter")
    )
    assert all(ours[name].equal(published[name]) for name in ours)


@pytest.mark.slow
def test_a_best_found_by_an_owed_evaluation_is_saved_where_the_run_goes_on(owing, tmp_path):
    run = tmp_path / "other"
    elsewhere(owing, run)
    assert_whole(run, owing[2])
    assert json.loads((run / "checkpoint-3" / "best.json").read_text())["owed"] == []


@pytest.mark.slow
def test_what_is_owed_is_kept_where_a_signal_ends_it_once_more(owing, tmp_path):
    run = tmp_path / "other"
    told = stopped_in(lambda: elsewhere(owing, run), 3)
    assert f"{run / 'checkpoint-3'} is complete" in told
    assert json.loads((run / "checkpoint-3" / "best.json").read_text())["owed"] == ["held_out"]
    elsewhere(owing, run, "auto")
    assert_whole(run, owing[2])


@pytest.mark.slow
def test_the_advice_of_a_run_that_stopped_early_trains_on(
    write_recipe, overfitting, tmp_path, capsys
):
    path, run, new = write_recipe(tmp_path), tmp_path / "run", tmp_path / "new"
    others = [one for one in overfitting if not re.search("save_steps|patience|max_steps", one)]
    others += ["train.save_steps=1", "train.early_stopping.patience=1"]
    overrides = [*others, "train.max_steps=14"]
    train(load_recipe(path, overrides))
    assert (record(run)["steps"], record(run)["best"]["step"]) == (2, 1)
    with pytest.raises(RecipeError) as refused:
        train(load_recipe(path, overrides))
    advice = re.search(r"of more steps: (.*)$", str(refused.value))
    assert advice is not None
    words = shlex.split(advice[1].replace("NEW", str(new)).replace("MORE", "20"))
    *settings, option, name = words
    assert option == "--allow-change"
    capsys.readouterr()
    train(load_recipe(path, [*others, *settings]), allow_change=[name])
    found = record(new)
    assert (found["steps"], found["best"]["step"]) == (4, 3)
    assert found["early_stopping"]["planned"] == 20
    said = " ".join(capsys.readouterr().out.split())
    assert "had stopped early at step 2" in said
