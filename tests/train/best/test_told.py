"""What is told of a run with ``keep_best`` or ``early_stopping``, and of which weights."""

import json

import pytest

from gptoss_tune.export.hub.card_results import stopped_words
from gptoss_tune.train.run import train


def record(run):
    return json.loads((run / "run.json").read_text())


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def ask(asked):
    """Overrides that ask the prompts, and how often."""
    return lambda *when: (f"evaluation.prompts={asked}", "evaluation.max_new_tokens=4", *when)


def test_without_a_best_the_evaluation_of_the_last_weights_is_recorded(
    recipe, held_out, ask, tmp_path
):
    """The base is asked too, before the first step; its figures are not the adapter's."""
    choice = (f"evaluation.drift.references={held_out[0]}", "train.keep_best=eval_kl_commentary")
    train(recipe("train.max_steps=2", *ask("evaluation.eval_steps=1"), *choice))
    found = record(tmp_path / "run")
    assert (tmp_path / "run" / "evaluation" / "step-0.json").is_file()
    assert found["best"]["step"] is None and found["evaluation"]["step"] == 2


def test_a_run_that_reaches_its_last_step_did_not_stop_early(recipe, overfitting, tmp_path, capsys):
    """The closing evaluation uses up the patience, and there is no step left to save."""
    others = [one for one in overfitting if "max_steps" not in one and "patience" not in one]
    train(recipe(*others, "train.max_steps=2", "train.early_stopping.patience=1"))
    found = record(tmp_path / "run")
    assert found["early_stopping"] | {"best": 0} == {
        **{"metric": "eval_loss", "goal": "min", "best": 0, "best_step": 1, "waited": 1},
        "stopped": False,
    }
    assert stopped_words(found) == "" and "stopped early" not in capsys.readouterr().out


def test_an_early_end_by_answers_leaves_the_figures_of_its_last_steps(
    recipe, ask, tmp_path, capsys
):
    stop = "train.early_stopping={patience: 1, metric: eval_graded}"
    often = ("train.max_steps=20", "train.logging_steps=10", "evaluation.eval_steps=2")
    train(recipe(*ask("evaluation.at_start=false"), *often, stop))
    run = tmp_path / "run"
    assert record(run)["steps"] == 4 and record(run)["loss"] is not None
    assert [row["step"] for row in lines(run) if "loss" in row] == [4]
    assert "the learning rate had come to" in " ".join(capsys.readouterr().out.split())
