"""Prompts before a model is loaded: counted, graded, and shown as a sampler gets them."""

import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import RecipeError
from gptoss_tune.grading.code.protection import protection
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe import load_recipe
from gptoss_tune.rollout.asked import first_prompts, look_at_prompts

PRICE = {
    "name": "price",
    "description": "The price of a fruit.",
    "parameters": {"type": "object", "properties": {"item": {"type": "string"}}},
}
ROWS = [
    {
        "messages": [{"role": "user", "content": "What does a pear cost?"}],
        "tools": [PRICE],
        "tool_results": [{"name": "price", "arguments": {"item": "pear"}, "result": "3"}],
        "answer": "3",
        "grader": "number",
    },
    {"prompt": "What is 3 * 4?", "answer": "12"},
    {"prompt": "What is 3 * 4?", "answer": "12"},
    {"messages": [{"role": "user", "content": "Say a."}, {"role": "assistant", "content": "a"}],
     "pattern": "a"},
]  # fmt: skip
SHOP = """
from gptoss_tune.environments.environment import Tool


class Shop:
    def reset(self, row, seed):
        return [{"role": "user", "content": f"Sell me a {row['item']}, please."}]

    def tools(self):
        schema = {"type": "object", "properties": {"item": {"type": "string"}}}
        return [Tool("sell_fruit", "Sells a fruit.", schema, lambda item: "sold")]

    def reward(self, outcome):
        return 1.0
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a recipe with these rows, and returns its path."""
    monkeypatch.chdir(tmp_path)

    def written(rows, held_out=None):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        held = ""
        if held_out is not None:
            (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
            held = ", eval: b.jsonl"
        (tmp_path / "a.yaml").write_text(
            "model: {name_or_path: openai/gpt-oss-20b}\n"
            "method: {name: grpo, prompts_per_step: 2, max_new_tokens: 64}\n"
            f"data: {{train: a.jsonl{held}, max_length: 512}}\n"
            "train: {output_dir: run, max_steps: 2}\n"
        )
        return "a.yaml"

    return written


def looked(path, *overrides, **options):
    recipe = load_recipe(path, list(overrides))
    return look_at_prompts(
        recipe.data, recipe.method, load_vocabulary(), seed=recipe.train.seed, **options
    )


def run(*words):
    return CliRunner().invoke(app, list(words))


def test_prompts_are_counted_by_grader_length_tools_and_repetition(write):
    found = looked(write(ROWS, ROWS[1:2]))
    train = found.splits["train"]
    assert (train.rows, len(train.tasks), train.repeated) == (4, 4, 1)
    assert train.graders == Counter({"exact": 2, "number": 1, "pattern": 1})
    assert (train.with_tools, train.with_results) == (1, 1)
    assert train.tokens == sorted(train.tokens) and train.tokens[-1] > train.tokens[0] + 40
    assert found.leaked == 1 and found.problems == []
    assert found.warnings == ["eval: 1 of 1 held-out prompts are asked in training too"]
    shown = first_prompts(
        train.tasks, load_recipe("a.yaml", []).data, load_recipe("a.yaml", []).method,
        load_vocabulary(),
    )  # fmt: skip
    assert sorted(len(one.token_ids) for one in shown) == train.tokens, "as they are asked"


def test_a_weight_repeats_prompts_and_is_no_repetition(write):
    path = write(ROWS[:2])
    found = looked(path, "data.train=[{path: a.jsonl, weight: 3}]").splits["train"]
    assert (found.rows, len(found.tasks), found.repeated) == (2, 6, 0)


def test_a_prompt_that_nothing_grades_is_a_problem_where_answers_are_rewarded(write):
    path = write([*ROWS, {"prompt": "Say hello."}])
    (problem,) = looked(path).problems
    assert "a.jsonl:5: the row has neither answer, pattern nor grader" in problem
    assert "method.rewards weighs answer" in problem
    form = looked(path, "method.rewards={format: 1}")
    assert form.problems == [] and "form alone is rewarded" in form.warnings[0]
    own = looked(path, own_environment=True)
    assert own.problems == own.warnings == [], "it is the class's own affair"


def test_mistakes_of_rows_and_of_graders_are_told_together_and_only_where_they_count(write):
    bad = {"prompt": "a", "grader": "nonsense"}
    path = write([*ROWS, bad, {"other": 1}])
    told = "\n".join(looked(path).problems)
    assert "a.jsonl:5: grader is 'nonsense'" in told and "a.jsonl:6: no known columns" in told
    path = write([*ROWS, bad])
    for found in (looked(path, "method.rewards={format: 1}"), looked(path, own_environment=True)):
        assert found.problems == [] and found.splits["train"].graders["unusable"] == 1


def test_the_text_of_the_tool_python_counts_in_the_prompt(write):
    plain = looked(write(ROWS)).splits["train"].tokens
    coded = looked("a.yaml", "method.environment=python").splits["train"]
    assert coded.tokens[0] > plain[0] + 100
    recipe = load_recipe("a.yaml", ["method.environment=python"])
    if protection().sufficient:
        shown = first_prompts(coded.tasks, recipe.data, recipe.method, load_vocabulary())
        assert sorted(len(one.token_ids) for one in shown) == coded.tokens, "as they are asked"
    # So a prompt that would leave no room is left out before the run, and not in it.
    short = looked("a.yaml", "method.environment=python", f"data.max_length={plain[0] + 20}")
    assert short.splits["train"].too_long == 4
    assert all(task.conversation.builtin_tools == () for task in coded.tasks)


def test_rows_that_cannot_be_played_are_listed_and_not_raised(write):
    path = write([*ROWS, {"prompt": "a", "answer": "1", "grader": "nonsense"}, {"other": 1}])
    result = run("check-data", path)
    assert result.exit_code == 2, result.output
    assert "a.jsonl:6" in result.stdout and "All prompts can be played" not in result.stdout
    long = write([*ROWS, {"prompt": "word " * 600, "answer": "1"}])
    found = looked(long)
    assert found.splits["train"].too_long == 1 and found.problems == []
    assert any("leave no room for an answer" in line for line in found.warnings)


def test_check_data_says_the_same_as_text_and_as_json(write):
    path = write(ROWS)
    result = run("check-data", path)
    assert result.exit_code == 0, result.output
    assert "graders  exact 2, number 1, pattern 1" in result.stdout
    assert "prompts  4, 1 of them asked before" in result.stdout
    assert "All prompts can be played." in result.stdout
    body = json.loads(run("check-data", path, "--json").stdout)
    assert body["ok"] and body["splits"]["train"]["graders"]["exact"] == 2
    assert body["splits"]["train"]["tokens"]["longest"] > 100
    few = run("check-data", path, "method.prompts_per_step=5", "--strict")
    assert few.exit_code == 2 and "each step asks some prompts more than once" in few.stdout


def test_preview_shows_a_prompt_as_it_is_asked_and_what_grades_it(write):
    result = run("preview", write(ROWS), "--n", "2")
    assert result.exit_code == 0, result.output
    first, _, second = result.stdout.partition("Prompt 2")
    assert "type price = (_: {" in first and "What does a pear cost?" in first
    assert first.index("type price") < first.index("What does a pear cost?")
    assert "<|start|>assistant\n  graded by: number, expected 3" in first
    assert "results of tools in the row: 1" in first
    assert "type price" not in second and "graded by: exact, expected 12" in second
    assert "Prompt 3" not in second and "tokens" in second
    refused = run("preview", "a.yaml", "--html", "a.html")
    assert isinstance(refused.exception, RecipeError) and "--html" in str(refused.exception)


def test_preview_asks_an_environment_of_the_users_own(write, tmp_path, monkeypatch):
    """What it says in ``reset`` and the tools that it offers stand in the prompt."""
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write([{"item": "pear"}, {"item": "plum"}])
    (tmp_path / "fruit_shop.py").write_text(SHOP)
    result = run("preview", path, "--environment", "fruit_shop:Shop", "--n", "1")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "Sell me a pear, please." in result.stdout and "sell_fruit" in result.stdout
    assert "graded by: nothing in the row" in result.stdout
    checked = run("check-data", path, "--environment", "fruit_shop:Shop")
    assert checked.exit_code == 0 and "prompts  2" in checked.stdout
    assert "0 of them asked before" in checked.stdout, "other rows, though neither has a prompt"
    missing = run("check-data", path, "--environment", "fruit_shop:Stall")
    assert isinstance(missing.exception, RecipeError) and "Stall" in str(missing.exception)
    alone = run("check-data", path)
    assert alone.exit_code == 2, "without the class the rows ask nothing"


def test_an_environment_is_of_grpo_alone(write):
    path = write(ROWS)
    for command in ("preview", "check-data"):
        refused = run(command, path, "method.name=sft", "--environment", "shop:Shop")
        assert isinstance(refused.exception, RecipeError)
        assert "only method grpo plays episodes" in str(refused.exception)
