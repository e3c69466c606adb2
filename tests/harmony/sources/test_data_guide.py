"""Every row in the guide can be trained on, and its recipe says what the schema knows."""

import json
import re

import pytest
import yaml

from gptoss_tune.harmony.sources.columns import ColumnTemplates
from gptoss_tune.recipe import DataSection
from gptoss_tune.shipped import shipped

GUIDE = shipped("data").parent / "docs" / "data.md"
TEXT = GUIDE.read_text(encoding="utf-8") if GUIDE.is_file() else ""
ROWS = re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_a_row_of_the_guide_renders(row, render):
    (example,) = render(json.loads(row))
    assert example.loss_weights.any()


def test_the_guide_s_recipe_is_sound():
    texts, block = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    assert DataSection.model_validate(yaml.safe_load(texts)["data"]).train[1].weight == 2
    data = DataSection.model_validate(yaml.safe_load(block)["data"])
    columns = data.train[0].columns
    assert columns is not None
    row = {"question": "a", "answer": "b", "rationale": "c"}
    written = ColumnTemplates(dict(columns.items())).apply(row, "row:1")
    assert written == {"prompt": "a", "completion": "b", "thinking": "c"}
    assert len(ROWS) == 8
