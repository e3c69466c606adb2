"""Templates may write what grades an episode, for the method that plays them alone."""

import json

import pytest

from gptoss_tune.grading.rows import read_grader
from gptoss_tune.harmony.sources.open import open_source
from gptoss_tune.recipe import load_recipe

ROWS = [{"q": "2 + 2?", "a": ["4", "four"]}, {"q": "3 + 3?", "a": ["6"]}]
SOURCE = """\
  train:
    path: a.jsonl
    columns:
      prompt: "{{ q }}"
      answer: "{{ a | tojson }}"
      grader: number
"""


@pytest.fixture
def text(sound):
    return sound.replace("  train: a.jsonl\n", SOURCE)


def test_a_key_that_grades_is_refused_where_nothing_is_graded(text, mistakes):
    first, second = mistakes(text)
    assert "data.train.columns.answer: got a template with method.name sft" in first
    assert "data.train.columns.grader" in second and "set method.name to grpo" in second
    held_out = SOURCE.replace("  train:", "  eval:").replace("grader: number", 'rules: "{{ r }}"')
    found = mistakes(text.replace("data:\n", f"data:\n{held_out}"), "method.name=dpo")
    assert ["data.eval" in line for line in found] == [
        True,
        True,
        False,
        False,
    ]  # in the order of their lines


def test_with_episodes_it_is_read_and_grades(text, load, tmp_path):
    load(text, "method.name=grpo")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = load_recipe("a.yaml", ["method.name=grpo"])
    (source,) = recipe.data.train
    rows = [row for _, row in open_source(source).rows()]
    assert rows[0] == {"prompt": "2 + 2?", "answer": ["4", "four"], "grader": "number"}
    assert read_grader(rows[1], "a.jsonl:2") is not None
