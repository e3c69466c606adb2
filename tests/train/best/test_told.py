"""What is told of a run with ``keep_best`` or ``early_stopping``, and of which weights."""

import json
import re

import pytest

from gptoss_tune.export.hub.card_results import (
    evaluation_of,
    evaluation_results,
    policies_of,
    stopped_words,
)
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


@pytest.mark.slow
def test_the_published_weights_are_asked_where_they_were_not(recipe, overfitting, ask, tmp_path):
    """Prompts that are asked at the end alone meet the last weights first, then the best ones."""
    others = [one for one in overfitting if not re.search("max_steps|early|output_dir", one)]
    choice = [*others, "train.max_steps=4"]
    for name, when in (("end", ()), ("often", ("evaluation.eval_steps=1",))):
        run = tmp_path / name
        train(recipe(*choice, *ask(*when), f"train.output_dir={run}"))
        assert record(run)["best"]["step"] == record(run)["evaluation"]["step"] == 3
    end, often = tmp_path / "end", tmp_path / "often"
    found = [(run / "evaluation" / "step-3.json").read_text() for run in (end, often)]
    assert found[0] == found[1] != (end / "evaluation" / "step-4.json").read_text()
    assert record(end)["evaluation"] == record(often)["evaluation"]
    # The metrics tell of what a step trained; the best step's line is its own or none.
    assert [row["step"] for row in lines(end) if "eval_health" in row] == [0, 4]


def test_the_card_has_no_figures_of_weights_that_were_not_published():
    policy = {"policies": {"by_policy": {"spam": {"f1": 0.5}}}}
    evaluation = {"step": 4, "graded": {"passed": 1, "total": 2}, **policy}
    of_last = {"eval_loss": 2.0, "best": {"step": 3}, "evaluation": evaluation}
    assert [one.metric_type for one in evaluation_results(of_last)] == ["loss"]
    assert not policies_of(of_last) and not evaluation_of(of_last)
    for best in ({"step": 4}, {"step": None}):
        found = [one.metric_type for one in evaluation_results({**of_last, "best": best})]
        assert found == ["loss", "accuracy", "f1"]
