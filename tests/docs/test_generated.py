"""The pages that are made from the program are what it says, and every setting has its words."""

import importlib.util
from pathlib import Path

import pytest

from gptoss_tune.recipe import recipe_json_schema

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings():
    """Yield every place of the schema in which a setting is declared."""
    schema = recipe_json_schema()
    for name, node in [("Recipe", schema), *schema["$defs"].items()]:
        for key, setting in node.get("properties", {}).items():
            yield f"{name}.{key}", setting


def test_every_setting_is_described_where_it_stands():
    """An editor shows what stands beside a key; the words of the section it leads to are others."""
    missing = [name for name, setting in settings() if not setting.get("description")]
    assert not missing


def test_no_description_is_the_one_of_another_setting_of_its_section():
    seen = {}
    for name, setting in settings():
        section = name.rsplit(".", 1)[0]
        assert seen.setdefault((section, setting["description"]), name) == name


def test_the_generated_pages_are_what_the_program_says(generate):
    for place, text in generate.pages().items():
        assert place.read_text(encoding="utf-8") == text, f"python docs/generate.py: {place.name}"


def test_the_reference_has_every_setting_and_what_it_takes(generate):
    page = generate.reference()
    for name in ("train.learning_rate", "method.beta", "data.channel_weights.final", "weight"):
        assert f"| `{name}` |" in page
    row = next(line for line in page.splitlines() if line.startswith("| `lora.rank` |"))
    assert "a whole number from 1 to 1024" in row and "`16`" in row
    assert "a mapping with  |" not in page
