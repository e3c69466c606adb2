"""What docs/evaluation.md shows is sound: its rows, its recipe, its names."""

import json
import re

import pytest
import yaml

from gptoss_tune.evaluate.prompts import read_questions
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.recipe import EvaluationSection
from gptoss_tune.shipped import shipped

GUIDE = shipped("data").parent / "docs" / "evaluation.md"
TEXT = GUIDE.read_text(encoding="utf-8") if GUIDE.is_file() else ""


@pytest.mark.parametrize("row", re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL))
def test_a_row_of_the_guide_can_be_asked_and_graded(row, vocabulary, write_rows):
    path = write_rows("rows.jsonl", json.loads(row))
    (question,) = read_questions(
        [path],
        Renderer(vocabulary, RenderSettings()),
        limit=1,
        efforts=["low"],
        max_new_tokens=8,
    )
    assert question.grader is not None


def test_the_guide_s_recipe_is_sound_and_its_files_are_shipped():
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    section = EvaluationSection.model_validate(yaml.safe_load(block)["evaluation"])
    assert section.prompts and section.drift.references and section.drift.probes
    for name in (*section.prompts, *section.drift.references, *section.drift.probes):
        assert (GUIDE.parents[1] / name).is_file(), name
