"""Every row in the guide to preferences is read as it says, and its sections are sound."""

import json
import re

import pytest
import yaml
from pydantic import TypeAdapter

from gptoss_tune.harmony.formats.labelled import read_labelled
from gptoss_tune.harmony.formats.preference import read_preference
from gptoss_tune.recipe.schema import METHODS, MethodSection
from gptoss_tune.shipped import shipped

GUIDE = shipped("data").parent / "docs" / "preferences.md"
TEXT = GUIDE.read_text(encoding="utf-8") if GUIDE.is_file() else ""
ROWS = [json.loads(row) for row in re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)]
SECTIONS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


def last(conversation):
    return conversation.messages[-1].text


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_a_row_of_the_guide_is_read(row):
    if "label" in row:
        labelled = read_labelled(row, "row:1")
        assert labelled.desirable is row["label"]
        assert last(labelled.conversation) in ("leaves", "oxes")
        return
    pair = read_preference(row, "row:1")
    assert last(pair.chosen) != last(pair.rejected)
    assert [m.text for m in pair.chosen.messages if m.header.role == "user"]
    better = ("11/24", "No, it is snowing.", "down", "7", "Yes, the nearest one.")
    assert last(pair.chosen) in (*better, "A mile: 1.609 km.", "Nairobi")
    assert not pair.tie and not pair.equal and not pair.lost_analysis


def test_the_guide_has_every_shape_and_every_method():
    assert len(ROWS) == 9
    read = TypeAdapter(MethodSection)
    names = [read.validate_python(section["method"]).name for section in SECTIONS]
    assert names == [name for name in METHODS if name not in ("sft", "grpo")]
