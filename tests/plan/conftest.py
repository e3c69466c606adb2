import pytest


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
