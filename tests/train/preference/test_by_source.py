"""Held-out pairs and labelled answers of two files: the figures of each, and of both."""

import json

import pytest
from preference_runs import lines, written

from gptoss_tune.recipe.figures.evaluation import evaluation_figures
from gptoss_tune.train.run import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_figures_of_all_are_the_sources_by_their_weights(
    recipe_of, preference_data, tmp_path, method
):
    kind = "labels" if method == "kto" else "pairs"
    held_out = preference_data[f"{kind}_eval"]
    rows = [json.loads(line) for line in held_out.read_text().splitlines()]
    files = [written(tmp_path / "near.jsonl", rows[:3]), written(tmp_path / "far.jsonl", rows[3:])]
    sources = ("train.max_steps=1", f"data.eval=[{files[0]},{files[1]}]")
    recipe = recipe_of(method, *sources, kind=kind)
    _, told = lines(train(recipe).folder)
    line = told[-1]
    weights = [line[f"eval_weight_{name}"] for name in ("near", "far")]
    assert weights == [3, len(rows) - 3]
    figures = ["loss"] if method == "kto" else ["loss", "reward_accuracy"]
    for figure in figures:
        parts = [line[f"eval_{figure}_{name}"] for name in ("near", "far")]
        mean = sum(p * w for p, w in zip(parts, weights, strict=True)) / sum(weights)
        assert line[f"eval_{figure}"] == pytest.approx(mean, rel=1e-6), figure
    known = evaluation_figures(recipe.method, recipe.data, recipe.evaluation)
    counts = ("runtime", "per_second", "eval_weight", "eval_pairs", "eval_answers")
    measured = {n for n in line if n.startswith("eval_") and not any(c in n for c in counts)}
    assert measured <= known.keys()
    assert {
        n for n in known.keys() - measured if not n.endswith(("analysis", "commentary"))
    } == set()
    if method == "dpo":
        # Alone the far ones have the loss that they have in both.
        _, alone = lines(
            train(recipe_of(method, "train.max_steps=1", f"data.eval={files[1]}", kind=kind)).folder
        )
        assert alone[-1]["eval_loss"] == pytest.approx(line["eval_loss_far"], rel=1e-5)
