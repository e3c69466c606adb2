"""A resolved recipe is YAML that means the same to every reader and loads to an equal recipe."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tune.recipe import Recipe, load_recipe, recipe_yaml, resolved_lines

# Words that some YAML reads as something else than the text they are.
TRAPS = [
    "no", "off", "y", "N", "null", "true", "1e-5", "017", "0x10", "12:30", "1_000", "3", "3.0",
    ".inf", "2025-06-28", "<<", "=", "a: b", "a #b", "- a", "[a", "{a", "*a", "&a", "!a", "%a",
    "@a", "'a", '"a', "a\\b", "é", "日本", "😀", "|", ">", "?", "-", ":", "#", "a,b", "1.",
    "+1", ".",
]  # fmt: skip


def recipe_with(text, **train):
    return Recipe.model_validate(
        {
            "model": {"name_or_path": "a/b"},
            "data": {
                "train": [text, {"path": "a.csv", "columns": {"prompt": text}}],
                "eval": {"path": "o/d", "split": text, "weight": 0.5},
            },
            "train": {"output_dir": text, "max_steps": 1, **train},
            "tracking": {"wandb": "offline", "project": text},
        }
    )


def same_to_every_reader(recipe, path):
    text = recipe_yaml(recipe)
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path) == recipe
    by_pyyaml = yaml.safe_load(text)
    assert Recipe.model_validate(by_pyyaml) == recipe
    assert isinstance(by_pyyaml["train"]["learning_rate"], float)
    assert recipe_yaml(load_recipe(path)) == text


@pytest.mark.parametrize("text", TRAPS)
def test_a_text_stays_a_text(tmp_path, text):
    same_to_every_reader(recipe_with(text), tmp_path / "a.yaml")


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    text=st.text(min_size=1, max_size=30).filter(
        lambda s: s.isprintable() and s == s.strip() and s[0] not in "~$" and "${" not in s
    ),
    rate=st.floats(min_value=1e-300, max_value=1),
    ratio=st.floats(min_value=0, max_value=0.99),
)
def test_any_text_and_number_comes_back(tmp_path_factory, text, rate, ratio):
    recipe = recipe_with(text, learning_rate=rate, warmup_ratio=ratio, max_steps=1000)
    same_to_every_reader(recipe, tmp_path_factory.getbasetemp() / "resolved.yaml")


def test_the_order_is_the_schema_s(load, sound):
    lines = recipe_yaml(load(sound)).splitlines()
    assert [line[:-1] for line in lines if not line.startswith(" ")] == list(Recipe.model_fields)
    assert lines[1] == "  name_or_path: openai/gpt-oss-20b"


def test_changed_values_are_marked_by_value_not_by_having_been_written(load, sound):
    recipe = load(sound + "  seed: 0\n  logging_steps: 5\n  max_grad_norm: 1\n")
    changed = {x.setting: x.note for x in resolved_lines(recipe) if x.kind == "changed"}
    assert changed == {
        "model.name_or_path": "required",
        "data.train": "required",
        "train.output_dir": "required",
        "train.max_steps": "default null",
        "train.logging_steps": "default 1",
    }
