"""A renderer, and suite files in a folder."""

import json

import pytest


@pytest.fixture(scope="session")
def vocabulary():
    from gptoss_tune.harmony.vocabulary import load_vocabulary

    return load_vocabulary(None)


@pytest.fixture(scope="session")
def renderer(vocabulary):
    from gptoss_tune.harmony.render import Renderer, RenderSettings

    return Renderer(vocabulary, RenderSettings())


@pytest.fixture
def write_rows(tmp_path):
    """Return a function that writes rows into a JSONL file and returns its path."""

    def write(name, *rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def write_suite(tmp_path):
    """Return a function that writes a suite file and returns its path."""

    def write(text, name="mine"):
        head = f"name: {name}\ndescription: Mine.\nlicence: Apache-2.0\nsource: written here\n"
        path = tmp_path / f"{name}.yaml"
        path.write_text(head + text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def recipe_of(tmp_path):
    """Return a function from lines of the data and evaluation sections to a recipe."""
    from gptoss_tune.recipe import load_recipe

    def load(data, evaluation="{}", *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(
            "model: {name_or_path: some/model}\n"
            f"data: {data}\n"
            f"train: {{output_dir: {tmp_path}/run, max_steps: 1}}\n"
            f"evaluation: {evaluation}\n",
            encoding="utf-8",
        )
        return load_recipe(path, overrides)

    return load
