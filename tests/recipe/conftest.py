import pytest

from gptoss_tune.recipe import RecipeMistakes, load_recipe

SOUND = """\
model:
  name_or_path: openai/gpt-oss-20b
data:
  train: a.jsonl
train:
  output_dir: runs/a
  max_steps: 10
"""


@pytest.fixture
def sound():
    """Text of a sound recipe; what a test adds starts in line 8."""
    return SOUND


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load YAML text as the file a.yaml of the current directory."""
    monkeypatch.chdir(tmp_path)

    def load(text, *overrides):
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (tmp_path / "a.yaml").write_bytes(data)
        return load_recipe("a.yaml", overrides)

    return load


@pytest.fixture
def mistakes(load):
    """Lines of the error that a text (and overrides) gives, without the heading of several."""

    def mistakes(text, *overrides):
        with pytest.raises(RecipeMistakes) as caught:
            load(text, *overrides)
        lines = [str(mistake) for mistake in caught.value.mistakes]
        shown = str(caught.value).split("\n")
        if len(lines) == 1:
            assert shown == lines
        else:
            assert shown == [f"{len(lines)} mistakes in a.yaml", *(f"  {x}" for x in lines)]
        return lines

    return mistakes
