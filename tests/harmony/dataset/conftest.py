"""Recipes of preferences, and their first pairs as they are shown."""

import json

import pytest
from shown_pairs import PAIRS

from gptoss_tune.recipe import DataSection
from gptoss_tune.report.token_view import first_preferences


@pytest.fixture
def recipe(tmp_path, write_jsonl):
    def write(rows, method="dpo", held_out=None, **data):
        settings = {"train": write_jsonl(rows), "max_length": 512, **data}
        if held_out is not None:
            settings["eval"] = write_jsonl(held_out, "eval.jsonl")
        section = method if isinstance(method, dict) else {"name": method}
        whole = {
            "model": {"name_or_path": "base"},
            "method": section,
            "data": settings,
            "train": {"output_dir": "run", "max_steps": 1},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(whole))
        return str(path)

    return write


@pytest.fixture
def shown(vocabulary, write_jsonl):
    def read(rows, kind=PAIRS, count=10):
        data = DataSection.model_validate({"train": write_jsonl(rows), "max_length": 512})
        return first_preferences(data, data.train, vocabulary, count, kind)

    return read
