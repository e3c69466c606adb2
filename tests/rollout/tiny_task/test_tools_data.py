"""The tiny task of two tools: rows in shape, answers that follow from the right tool alone."""

import json
from collections import Counter

import pytest

from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.harmony.formats.openai_chat import read_chat
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe import load_recipe
from gptoss_tune.shipped import shipped

WARM_UP, TRAIN, EVAL = (
    [
        json.loads(line)
        for line in (shipped("data") / f"tiny/tools_{part}.jsonl").read_text("utf-8").splitlines()
    ]
    for part in ("warmup", "train", "eval")
)

ITEMS = ("lamp", "chair", "clock", "brush", "mirror", "knife")


def asked(row):
    return row["messages"][0]["content"]


def right_tool(row):
    return "price" if "price" in asked(row) else "stock"


def item(row):
    return next(word for word in ITEMS if word in asked(row))


def phrase(row):
    return asked(row).replace(item(row), "{}")


@pytest.mark.parametrize("rows", [TRAIN, EVAL], ids=["train", "eval"])
def test_the_answer_is_what_the_right_tool_returns_and_no_other(rows):
    for row in rows:
        results = {entry["name"]: entry["result"] for entry in row["tool_results"]}
        assert all(entry["arguments"] == {} for entry in row["tool_results"])
        assert results.keys() == {tool["function"]["name"] for tool in row["tools"]}
        assert results["price"] != results["stock"]
        grader = read_grader(row, "row")
        passed = {
            name: grader.judge(Given(text), seconds=5).passed for name, text in results.items()
        }
        assert passed == {name: name == right_tool(row) for name in results}
    kinds = Counter(map(right_tool, rows))
    assert kinds["price"] == kinds["stock"]


def test_held_out_questions_are_new_combinations_of_trained_words():
    trained = {asked(row) for row in TRAIN}
    assert trained == {asked(row) for row in WARM_UP}
    assert len(trained) == len(TRAIN) == 48 and len({asked(row) for row in EVAL}) == len(EVAL) == 24
    assert not trained & {asked(row) for row in EVAL}
    for part in (phrase, item):
        assert set(map(part, EVAL)) <= set(map(part, TRAIN))


def test_the_warm_up_calls_the_wrong_tool_as_often_as_the_right_one():
    calls = Counter()
    for row in WARM_UP:
        _, call, result, final = row["messages"]
        (made,) = call["tool_calls"]
        assert json.loads(made["function"]["arguments"]) == {}
        assert final["content"] == result["content"]
        calls[asked(row), made["function"]["name"]] += 1
    assert calls == {(asked(row), tool): 1 for row in TRAIN for tool in ("price", "stock")}


def test_what_the_recipes_read_fits_into_their_rows():
    renderer = Renderer(load_vocabulary(), RenderSettings())
    recipe = load_recipe(shipped("recipes") / "tiny/tools.yaml")
    longest = max(
        len(example.input_ids)
        for row in WARM_UP
        for example in renderer.render(read_chat(row, "row"))
    )
    assert longest <= recipe.data.max_length
