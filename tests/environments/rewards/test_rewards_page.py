"""docs/rewards.md: its code runs, its table of episodes is computed, its figures are true."""

import re

import pytest

from gptoss_tune.environments.bounded import MOST_LEFT
from gptoss_tune.environments.rewards.components import (
    format_health,
    shortness,
    well_formed_calls,
)
from gptoss_tune.environments.rewards.reward import AT_A_TIME, MOST_COMPONENTS, RewardFunction
from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.grading.rows import READERS
from gptoss_tune.recipe.contradictions.rewards import COMPONENTS
from gptoss_tune.shipped import shipped

PAGE = shipped("data").parent / "docs" / "rewards.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
CODE = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def test_the_class_of_the_page_plays(task, episode, use):
    names = {}
    exec(CODE[0], names)
    row = {"prices": {"pear": 7}, "count": 3}
    world = names["Shop"]()
    assert "3 pears" in world.reset(row, 1)[0]["content"]
    (tool,) = world.tools()
    assert tool.run(item="pear") == 7
    reward = RewardFunction({"right": 1.0, "thrift": 0.1, "format": 0.1}, own=True)
    outcome = episode((Call("price", "{}"),), "21", uses=(use(), use()))
    outcome = type(outcome)(**{**vars(outcome), "row": row})
    found = reward.judge(world, task(row), outcome)
    assert found.components == {"right": 1.0, "thrift": 0.5, "format": 1.0} and not found.failed


def test_the_use_from_python_runs():
    exec(CODE[-1], {})


def test_the_episodes_of_the_table(episode, use):
    call = (Call("price", '{"item": "pear"}'),)
    both = Given("7", call, "Hm.")
    wrong = use(wrong_by_model=True)
    whole = episode("7", tokens=20, uses=(use(),))
    played = [
        episode(call, "7", tokens=80, uses=(use(),)),
        episode(call, call, "7", tokens=90, uses=(wrong, use())),
        episode(call, "It cos", tokens=150, uses=(use(),), ended="length"),
        episode("7", thoughts="", tokens=10),
        type(whole)(**{**vars(whole), "answers": (both,)}),
    ]
    table = re.search(r"\| episode \|.*?\n\|---.*?\n(.*?)\n\n", TEXT, re.DOTALL)[1].splitlines()
    said = [[float(cell) for cell in line.split("|")[2:5]] for line in table]
    found = [[format_health(o), well_formed_calls(o), shortness(o, 20)] for o in played]
    assert found == [pytest.approx(line) for line in said]


def test_names_and_figures():
    table = re.search(r"\| component \|.*?\n\|---.*?\n(.*?)\n\n", TEXT, re.DOTALL)[1]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == COMPONENTS
    assert all(f"`{kind}`" in TEXT for kind in READERS if kind != "exact")
    assert f"at most {MOST_COMPONENTS} components" in TEXT and f"up to {AT_A_TIME} of a" in TEXT
    assert f"From {MOST_LEFT} of them on" in TEXT
