import pytest

from gptoss_tune.recipe import load_recipe


@pytest.fixture
def sound():
    """Text of a sound recipe for the released base."""
    return """\
model:
  name_or_path: openai/gpt-oss-20b
data:
  train: a.jsonl
train:
  output_dir: runs/a
  max_steps: 10
"""


@pytest.fixture
def recipe(tmp_path, sound):
    """Return a function that loads that recipe with overrides."""
    path = tmp_path / "a.yaml"
    path.write_text(sound)
    return lambda *overrides: load_recipe(path, overrides)
