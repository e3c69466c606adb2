"""A recipe's own rows as questions: each call in the context it is served in."""

import json

import pytest

from gptoss_tune.benchmark.suites.of_recipe import suites_of
from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.harmony.dataset.load import load_dataset

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("weather", "order")
]


def call(name, arguments, number):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": str(number), "type": "function", "function": function}


def turn(question, name, arguments, answer, number=1):
    return [
        {"role": "user", "content": question},
        {
            "role": "assistant",
            "content": None,
            "thinking": f"Thought {number} before the call.",
            "tool_calls": [call(name, arguments, number)],
        },
        {"role": "tool", "tool_call_id": str(number), "content": f"result {number}"},
        {"role": "assistant", "content": answer, "thinking": f"Thought {number} after it."},
    ]


def row(*turns, **keys):
    messages = [message for one in turns for message in one]
    return {"messages": messages, "tools": TOOLS, **keys}


@pytest.fixture
def held_out(recipe_of, vocabulary):
    def run(path, *overrides, evaluation="{}", train=None, **settings):
        data = f"{{train: {train or path}, eval: {path}}}" if train is None else train
        recipe = recipe_of(data, evaluation, *overrides)
        suites = suites_of(recipe.evaluation, recipe.data, vocabulary, seed=3, **settings)
        return {suite.name: suite for suite in suites}

    return run


def text(vocabulary, question):
    return vocabulary.encoding.decode(list(question.prompt_ids))


def answers(question, name, arguments):
    given = Given(None, (Call(name, json.dumps(arguments)),))
    return question.grader.judge(given, 1.0).passed


def test_each_call_is_asked_in_the_context_it_is_served_in(held_out, write_rows, vocabulary):
    path = write_rows(
        "rows.jsonl",
        row(
            turn("Oslo?", "weather", {"city": "Oslo"}, "Snow.", 1),
            turn("Order 3.", "order", {"count": 3, "express": True}, "Done.", 2),
        ),
    )
    suite = held_out(path)["held-out"]
    first, second = suite.questions
    assert answers(first, "weather", {"city": "Oslo"})
    assert not answers(first, "weather", {"city": "Bergen"})
    assert not answers(first, "order", {"city": "Oslo"})
    assert answers(second, "order", {"express": True, "count": 3.0})
    assert not second.grader.judge(Given("Done."), 1.0).passed
    asked = text(vocabulary, second)
    assert asked.endswith("<|start|>user<|message|>Order 3.<|end|><|start|>assistant")
    # The call and the result of the turn before are history, its thoughts are gone.
    assert "result 1" in asked and "Snow." in asked and "Thought" not in asked
    assert first.recipients == {"functions.weather", "functions.order"}
    assert suite.notes == ("held-out: left out 2 textual answers that nothing grades",)
    assert [q.source.rpartition("/")[2] for q in suite.questions] == [
        "rows.jsonl:1 answer 1",
        "rows.jsonl:1 answer 2",
    ]


def test_a_call_after_a_result_keeps_the_thoughts_of_its_turn(held_out, write_rows, vocabulary):
    messages = turn("Compare.", "weather", {"city": "A"}, "A is colder.", 1)
    messages[3:3] = [
        {"role": "assistant", "content": None, "tool_calls": [call("weather", {"city": "B"}, 2)]},
        {"role": "tool", "tool_call_id": "2", "content": "result 2"},
    ]
    suite = held_out(write_rows("rows.jsonl", row(messages)))["held-out"]
    _, second = suite.questions
    asked = text(vocabulary, second)
    assert answers(second, "weather", {"city": "B"}) and not answers(
        second, "weather", {"city": "A"}
    )
    assert "Thought 1 before the call." in asked and asked.endswith(
        "result 1<|end|><|start|>assistant"
    )


def test_a_textual_answer_counts_where_its_row_says_how(held_out, write_rows):
    plain = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
    path = write_rows(
        "rows.jsonl",
        {"messages": plain},
        {"messages": plain, "answer": "4", "grader": "number"},
        row(turn("Oslo?", "weather", {"city": "Oslo"}, "Snow."), pattern="(?i)snow"),
    )
    suite = held_out(path)["held-out"]
    assert [q.grader.kind for q in suite.questions] == ["number", "calls", "pattern"]
    assert suite.questions[2].grader.judge(Given("It snows: snow."), 1.0).passed
    assert suite.notes == ("held-out: left out 1 textual answers that nothing grades",)


def test_the_held_out_share_is_that_of_training(recipe_of, write_rows, vocabulary):
    path = write_rows(
        "rows.jsonl",
        *(row(turn(f"City {n}?", "weather", {"city": f"C{n}"}, f"Warm {n}.")) for n in range(20)),
    )
    recipe = recipe_of(f"{{train: {path}, eval_fraction: 0.3}}")
    (suite,) = suites_of(recipe.evaluation, recipe.data, vocabulary, seed=3)
    trained = load_dataset(recipe.data, split="train", vocabulary=vocabulary, seed=3)
    learned = " ".join(vocabulary.encoding.decode(one["input_ids"]) for one in trained)
    assert len(suite.questions) == 6
    for question in suite.questions:
        assert question.messages[-1]["content"] not in learned
    others = suites_of(recipe.evaluation, recipe.data, vocabulary, seed=4)[0]
    assert {q.source for q in others.questions} != {q.source for q in suite.questions}


def test_turns_that_are_not_trained_are_counted(held_out, write_rows):
    path = write_rows(
        "rows.jsonl",
        row(
            turn("A?", "weather", {"city": "A"}, "1."),
            turn("B?", "weather", {"city": "B"}, "2.", 2),
        ),
    )
    suite = held_out(path, "data.turns=last")["held-out"]
    assert [q.messages[-1]["content"] for q in suite.questions] == ["B?"]
    assert "held-out: left out 2 answers that are context and not trained" in suite.notes


def test_a_limit_is_counted(held_out, write_rows):
    rows = (row(turn(f"{n}?", "weather", {"n": n}, "Ok.")) for n in range(5))
    suite = held_out(write_rows("rows.jsonl", *rows), limit=2)["held-out"]
    assert len(suite.questions) == 2
    assert "held-out: left out 3 questions over 2" in suite.notes


def test_rows_that_cannot_be_read_stop_or_are_counted(held_out, write_rows):
    path = write_rows("rows.jsonl", row(turn("A?", "weather", {}, "1.")), {"messages": []})
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        held_out(path)
    suite = held_out(path, "data.on_error=skip")["held-out"]
    assert "held-out: left out 1 rows that cannot be read" in suite.notes


def test_prompts_and_named_suites(held_out, write_rows):
    prompts = write_rows("p.jsonl", {"prompt": "1 + 1?", "answer": "2"}, {"prompt": "Hi"})
    rows = write_rows("rows.jsonl", row(turn("A?", "weather", {}, "1.")))
    own = held_out(rows, evaluation=f"{{prompts: {prompts}}}")
    assert list(own) == ["prompts", "held-out"]
    assert own["prompts"].notes == ("prompts: left out 1 prompts that nothing grades",)
    named = (
        held_out(rows, evaluation=f"{{suites: [instructions, {prompts.replace('p.', 'q.')}]}}")
        if write_rows("q.jsonl", {"prompt": "1?", "answer": "1"})
        else {}
    )
    assert list(named) == ["instructions", "q"]
    assert list(held_out(rows, names=["held-out"], evaluation="{suites: tools}")) == ["held-out"]


def test_nothing_to_ask_is_refused(held_out, write_rows):
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    path = write_rows("rows.jsonl", {"messages": plain})
    with pytest.raises(RecipeError, match="nothing to ask"):
        held_out(path)
    with pytest.raises(DataError, match="none of the 1 held-out rows"):
        held_out(path, names=["held-out"])
    with pytest.raises(RecipeError, match=r"(?s)nope: no such suite.*nada: no such suite"):
        held_out(path, names=["nope", "nada"])
    with pytest.raises(RecipeError, match="both called tools"):
        held_out(path, names=["tools", "tools"])
