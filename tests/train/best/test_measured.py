"""A figure that the run's files do not give is refused before weights; one they give never is."""

import json
from types import SimpleNamespace

import pytest
from datasets import Dataset

from gptoss_tune.errors import RecipeError
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.recipe import DataSection
from gptoss_tune.recipe.figures.sources import CHANNELS
from gptoss_tune.recipe.schema import TrainSection
from gptoss_tune.train.best.measured import refuse_unmeasured
from gptoss_tune.train.run import train


def asks(*rows, efforts=("low",), compared=()):
    graders = [read_grader(row, "x:1") for row in rows]
    return SimpleNamespace(
        questions=[SimpleNamespace(grader=g, effort=e) for g in graders for e in efforts],
        compared=frozenset(compared),
    )


GRADED, PLAIN = {"answer": "4"}, {}
SAFE = ("regressions", "unhealthy", "wrong")


def refuse(metric, asked=None, held_out=None, stopping=None):
    settings = {"keep_best": {"metric": metric}}
    if stopping is not None:
        settings["early_stopping"] = {"patience": 2, "metric": stopping}
    section = TrainSection.model_validate({"output_dir": "run", "max_steps": 9, **settings})
    data = DataSection(train=["maths.jsonl", "words.jsonl"], eval_fraction=0.2)
    refuse_unmeasured(section, data, asked, held_out)


def rendered(*rows, **more):
    """Rows of (source, channel, weight), a token each after one that is not trained."""
    columns = {
        "loss_weights": [[0.0, weight] for _, _, weight in rows],
        "channels": [[0, CHANNELS.index(channel)] for _, channel, _ in rows],
        "sources": [[source] for source, _, _ in rows],
    }
    return Dataset.from_dict(columns | more)


@pytest.mark.parametrize(
    ("metric", "asked", "said"),
    [
        ("eval_graded", asks(PLAIN), "no row there has a grader"),
        ("eval_reasoning_tokens_high", asks(GRADED, efforts=("low", "medium")), "low, medium; set"),
        ("eval_safety_silent_hint", asks(GRADED, compared=SAFE), "eval_safety_wrong; a hint needs"),
    ],
)
def test_a_figure_without_a_question_is_refused(metric, asked, said):
    with pytest.raises(RecipeError, match=said):
        refuse(metric, asked)


@pytest.mark.parametrize(
    ("metric", "asked"),
    [
        ("eval_graded", asks(PLAIN, GRADED)),
        ("eval_health", asks(PLAIN)),
        ("eval_reasoning_tokens_medium", asks(PLAIN, efforts=("low", "medium"))),
        ("eval_safety_wrong", asks(GRADED, compared=SAFE)),
        ("eval_safety_regressions", asks(PLAIN, compared=SAFE)),
        ("eval_kl", asks()),
        ("eval_loss_maths", None),
    ],
)
def test_one_with_a_question_is_taken(metric, asked):
    refuse(metric, asked)


def test_a_source_or_channel_without_held_out_rows_is_refused():
    rows = rendered((0, "final", 1.0), (0, "analysis", 0.0))
    for metric in ("eval_loss", "eval_loss_maths", "eval_reward_accuracy_maths", "eval_loss_final"):
        refuse(metric, None, rows)
    for metric in ("eval_loss_words", "eval_reward_accuracy_words"):
        with pytest.raises(RecipeError, match="expected a source with held-out rows: maths; hold"):
            refuse(metric, None, rows)
    for channel in ("analysis", "text"):
        with pytest.raises(RecipeError, match="have trained tokens: final"):
            refuse(f"eval_loss_{channel}", None, rows)
    refuse("eval_loss_words", None, rendered((1, "final", 1.0)))


def test_a_reward_of_answers_that_are_not_held_out_is_refused():
    liked = rendered((0, "final", 1.0), branches=[[1]])
    refuse("eval_reward_chosen", None, liked)
    for metric in ("eval_reward_rejected", "eval_reward_margin", "eval_logp_drift_rejected"):
        with pytest.raises(RecipeError, match="held-out rows, of which none is rejected"):
            refuse(metric, None, liked)
        refuse(metric, None, rendered((0, "final", 1.0), branches=[[1, -1]]))


def test_both_settings_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        refuse("eval_graded", asks(PLAIN), rendered((0, "final", 1.0)), "eval_loss_words")
    first, second = str(caught.value).splitlines()
    assert first.startswith("train.keep_best.metric: got eval_graded, expected ")
    assert second.startswith("train.early_stopping.metric: got eval_loss_words, expected ")


@pytest.fixture
def refused(recipe, tmp_path):
    """Return a function from overrides to the message that ends a run before its weights."""

    def refuse(*overrides):
        with pytest.raises(RecipeError) as caught:
            train(recipe("train.max_steps=4", *overrides))
        assert not (tmp_path / "run" / "run.json").exists()
        return str(caught.value)

    return refuse


def test_a_run_is_refused_before_its_weights(refused, asked, held_out, tmp_path):
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"prompt": "2 + 2?"}) + "\n", encoding="utf-8")
    every = ("evaluation.eval_steps=2", "evaluation.max_new_tokens=4")
    none = refused(f"evaluation.prompts={plain}", *every, "train.keep_best=eval_graded")
    assert "no row there has a grader" in none
    least = "train.keep_best={metric: eval_reasoning_tokens_low, goal: min}"
    assert ": medium; set" in refused(f"evaluation.prompts={asked}", *every, least)
    hints = (f"evaluation.prompts={plain}", "evaluation.safety.hints=true")
    moved = refused(*hints, *every, "train.keep_best=eval_safety_silent_hint")
    assert "eval_safety_regressions, eval_safety_unhealthy; a hint needs" in moved
    channel = (f"data.eval={held_out[0]}", "train.eval_steps=1")
    words = refused(*channel, "train.keep_best=eval_loss_commentary")
    assert words.endswith("have trained tokens: analysis, final")
