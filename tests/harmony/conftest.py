import json

import pytest

from gptoss_tune.harmony.formats.registry import read_row
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary


@pytest.fixture(scope="session")
def vocabulary():
    return load_vocabulary()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test renders anew: nothing is taken from, or left in, the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def render(vocabulary):
    """Render a row: ``render(row, turns="last")`` -> Examples."""

    def run(row, **settings):
        renderer = Renderer(vocabulary, RenderSettings(**settings))
        return renderer.render(read_row(row, "row:1"))

    return run


@pytest.fixture
def write_jsonl(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


def trained_text(example, vocabulary):
    """The tokens that are trained, spelled out."""
    return vocabulary.decode(example.input_ids[example.loss_weights > 0].tolist())
