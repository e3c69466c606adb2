"""Held-out loss by source: each the loss of that file alone, packed or not."""

import json

import pytest

from gptoss_tune.recipe.figures.evaluation import evaluation_figures
from gptoss_tune.train.run import train


def evaluations(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if any(name.startswith("eval_") for name in row)]


@pytest.fixture
def evaluated(recipe, tmp_path):
    """Return a function from overrides to the last evaluation of a run of one step.

    A step that changes nothing, so that packing, which packs the training rows too, is all that
    differs between two of them.
    """
    still = ("train.max_steps=1", "train.learning_rate=1e-12", "guard.check_steps=0")

    def run(name, *overrides):
        made = recipe(*still, f"train.output_dir={tmp_path / name}", *overrides)
        train(made)
        return evaluations(tmp_path / name)[-1]

    return run


def whole(line, names):
    total = sum(line[f"eval_weight_{name}"] for name in names)
    return sum(line[f"eval_loss_{name}"] * line[f"eval_weight_{name}"] for name in names) / total


def test_each_source_has_the_loss_of_that_file_alone(evaluated, held_out):
    maths, words = held_out
    names = ("maths", "words_1")
    both = evaluated("both", f"data.eval=[{maths},{words}]")
    alone = evaluated("alone", f"data.eval={words}")
    assert both["eval_loss_words_1"] == pytest.approx(alone["eval_loss"], rel=1e-6)
    assert both["eval_loss"] == pytest.approx(whole(both, names), rel=1e-12)
    assert not any("words" in name for name in alone)
    # Documents of both files in one row, and no token is counted for the other.
    packed = evaluated("packed", f"data.eval=[{maths},{words}]", "data.packing=true")
    for name in names:
        assert packed[f"eval_weight_{name}"] == both[f"eval_weight_{name}"]
        assert packed[f"eval_loss_{name}"] == pytest.approx(both[f"eval_loss_{name}"], rel=1e-5)
    assert packed["eval_loss"] == pytest.approx(whole(packed, names), rel=1e-12)


@pytest.mark.slow
def test_a_held_out_share_is_told_by_the_files_it_was_drawn_from(evaluated, rows, held_out):
    _, words = held_out
    line = evaluated("share", f"data.train=[{rows},{words}]", "data.eval_fraction=0.5")
    assert line["eval_loss"] == pytest.approx(whole(line, ("rows", "words_1")), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("evaluation.prompts={asked}", "evaluation.max_new_tokens=4"),
        ("evaluation.drift.references={rows}", "evaluation.drift.probes={asked}"),
    ],
)
def test_the_recipe_knows_every_figure_of_its_evaluations(
    recipe, held_out, rows, asked, tmp_path, overrides
):
    """Of the figures that are measured none is unknown; of those known only channels may lack."""
    maths, words = held_out
    filled = [one.format(asked=asked, rows=rows) for one in overrides]
    made = recipe("train.max_steps=1", f"data.eval=[{maths},{words}]", *filled)
    train(made)
    measured = {name for row in evaluations(tmp_path / "run") for name in row}
    measured = {name for name in measured if name.startswith("eval_")}
    counts = ("runtime", "per_second", "eval_weight", "trained_tokens")
    measured = {name for name in measured if not any(part in name for part in counts)}
    known = set(evaluation_figures(made.method, made.data, made.evaluation))
    assert measured <= known
    some = ("analysis", "commentary", "final", "text", "low", "medium", "high")
    # And those of policies, which no prompt here carries.
    assert {n for n in known - measured if not n.endswith((*some, "macro"))} == set()
