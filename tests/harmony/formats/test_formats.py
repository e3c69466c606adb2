"""Every accepted format becomes the conversation that its chat row would be."""

import json

import numpy as np
import pytest

from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.harmony.formats.detect import format_of
from gptoss_tune.harmony.formats.preference import read_preference
from gptoss_tune.harmony.formats.prompt import read_prompt
from gptoss_tune.harmony.formats.registry import read_row
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.sources.columns import ColumnTemplates

CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
    ]
}
TOOLS = [
    {
        "name": "f",
        "description": "F.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    }
]
TOOL_CHAT = {
    "tools": [{"type": "function", "function": TOOLS[0]}],
    "messages": [
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "x", "content": "r"},
        {"role": "assistant", "content": "done"},
    ],
}


def thinking(**fields):
    message = {"role": "assistant", "content": "2", **fields}
    return {"messages": [{"role": "user", "content": "1+1?"}, message]}


SAME = {
    "content parts": (
        {
            "messages": [
                CHAT["messages"][0],
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}],
                },
                CHAT["messages"][2],
            ]
        },
        CHAT,
    ),
    "two system messages": (
        {
            "messages": [
                {"role": "system", "content": "Be"},
                {"role": "developer", "content": "brief."},
                *CHAT["messages"][1:],
            ]
        },
        {"messages": [{"role": "system", "content": "Be\n\nbrief."}, *CHAT["messages"][1:]]},
    ),
    "reasoning_content": (thinking(reasoning_content="easy"), thinking(thinking="easy")),
    "reasoning": (thinking(reasoning="easy"), thinking(thinking="easy")),
    "thinking twice the same": (
        thinking(reasoning_content="easy", thinking="easy"),
        thinking(thinking="easy"),
    ),
    "null fields": (
        {**CHAT, "tools": None, "weight": None, "reasoning_effort": None, "prompt": None},
        CHAT,
    ),
    "sharegpt": (
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}],
        },
        CHAT,
    ),
    "sharegpt with roles": (
        {
            "conversations": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": "2"},
            ]
        },
        CHAT,
    ),
    "sharegpt with tools": (
        {
            "tools": json.dumps(TOOLS),
            "conversations": [
                {"from": "human", "value": "go"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "r"},
                {"from": "gpt", "value": "done"},
            ],
        },
        TOOL_CHAT,
    ),
    "prompt and completion": (
        {"system": "Be brief.", "prompt": "1+1?", "completion": "2"},
        CHAT,
    ),
    "prompt and completion as messages": (
        {"prompt": CHAT["messages"][:2], "completion": CHAT["messages"][2:]},
        CHAT,
    ),
    "prompt, thinking and completion": (
        {"prompt": "1+1?", "thinking": "easy", "completion": "2"},
        thinking(thinking="easy"),
    ),
    "bare tool declarations": ({**TOOL_CHAT, "tools": TOOLS}, TOOL_CHAT),
    "flat tool declarations": (
        {**TOOL_CHAT, "tools": [{"type": "function", **TOOLS[0]}]},
        TOOL_CHAT,
    ),
    "older functions": (
        {
            "functions": TOOLS,
            "messages": [
                {"role": "user", "content": "go"},
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "f", "arguments": '{"a": 1}'},
                },
                {"role": "function", "name": "f", "content": "r"},
                {"role": "assistant", "content": "done"},
            ],
        },
        TOOL_CHAT,
    ),
    "results by order": (
        {
            **TOOL_CHAT,
            "messages": [
                TOOL_CHAT["messages"][0],
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}],
                },
                {"role": "tool", "content": "r"},
                TOOL_CHAT["messages"][3],
            ],
        },
        TOOL_CHAT,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_format_gives_the_tokens_and_weights_of_its_chat_row(name, render):
    row, chat = SAME[name]
    (got,), (expected,) = render(row), render(chat)
    assert got.input_ids.tolist() == expected.input_ids.tolist()
    assert np.array_equal(got.loss_weights, expected.loss_weights)


def test_only_the_completion_is_trained(render, vocabulary):
    prompt = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "2?"},
    ]
    (example,) = render({"prompt": prompt, "completion": "two"})
    trained = vocabulary.decode(example.input_ids[example.loss_weights > 0].tolist())
    assert trained == "<|channel|>final<|message|>two<|return|>"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (CHAT, "chat"),
        ({"messages": [{"role": "assistant", "channel": "final", "content": "x"}]}, "native"),
        ({"conversations": []}, "sharegpt"),
        ({"prompt": "a", "completion": "b"}, "completion"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"prompt": "a"}, "prompt"),
        ({"prompt": "a", "completion": None}, "prompt"),
        ({"chosen": "b", "rejected": "c", "messages": []}, "preference"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "prompt"),
        ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "openai_preference"),
        ({"context": [], "response1": "b", "response2": "c"}, "comparison"),
        (
            {"prompt": "a", "response1": "b", "response2": "c", "overall_preference": 0},
            "comparison",
        ),
        ({"prompt": "a", "response1": "b", "response2": "c"}, "prompt"),
        ({"prompt": "a", "completion": "b", "label": True}, "completion"),
    ],
)
def test_a_format_is_recognised_by_its_columns(row, name):
    assert format_of(row, "row:1") == name


def test_rows_that_no_template_can_map_are_not_told_to_use_one():
    with pytest.raises(DataError, match="rename the column of the question to prompt"):
        format_of({"question": "a", "answer": "b"}, "row:1", templates=False)
    assert format_of({"prompt": "a", "answer": "b"}, "row:1", templates=False) == "prompt"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"asked": "a", "said": "b"}, "no known columns (got 'asked', 'said')"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "a preference pair (chosen, rejected)",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "set method.name to dpo"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "name the column of the answer with a"),
        (
            {"input": {}, "preferred_output": [], "non_preferred_output": []},
            "is a preference pair (preferred_output, non_preferred_output)",
        ),
        ({"prompt": "a"}, "a prompt without an answer"),
        ({}, "no known columns (got none)"),
    ],
)
def test_a_row_of_another_kind_is_refused_with_what_to_do(row, message):
    with pytest.raises(DataError) as caught:
        read_row(row, "d.jsonl:3")
    assert str(caught.value).startswith("d.jsonl:3: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
        {
            "chosen": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}],
            "rejected": [
                {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": "3"},
            ],
        },
    ],
)
def test_preference_pairs_share_their_prompt(row, vocabulary):
    pair = read_preference(row, "row:1")
    renderer = Renderer(vocabulary, RenderSettings(turns="last"))
    (chosen,), (rejected,) = renderer.render(pair.chosen), renderer.render(pair.rejected)
    prompt = renderer.render_prompt(read_prompt({"prompt": "1+1?"}, "row:1"))
    assert chosen.input_ids[: len(prompt)].tolist() == prompt
    assert rejected.input_ids[: len(prompt)].tolist() == prompt
    assert not chosen.loss_weights[: len(prompt)].any()
    assert vocabulary.decode(chosen.input_ids[len(prompt) :].tolist()).endswith("2<|return|>")
    assert vocabulary.decode(rejected.input_ids[len(prompt) :].tolist()).endswith("3<|return|>")


def test_a_prompt_to_answer_needs_the_column_prompt():
    with pytest.raises(DataError, match="the row has no 'prompt'"):
        read_prompt({"chosen": "b"}, "row:1")


def test_templates_write_a_row_from_any_columns(render):
    templates = ColumnTemplates(
        {
            "system": "Be {{ tone }}.",
            "prompt": "{{ a }}+{{ b }}?",
            "completion": "{{ (a + b) }}",
            "thinking": "{% if hint %}{{ hint }}{% endif %}",
        }
    )
    written = templates.apply({"a": 1, "b": 1, "tone": "brief", "hint": ""}, "row:1")
    assert written == {"system": "Be brief.", "prompt": "1+1?", "completion": "2"}
    (got,), (expected,) = render(written), render(CHAT)
    assert got.input_ids.tolist() == expected.input_ids.tolist()


def test_templates_write_lists_as_json():
    templates = ColumnTemplates({"messages": "{{ turns | tojson }}", "weight": "{{ w }}"})
    turns = [{"role": "user", "content": 'a "<b>" \u2028 é'}]
    assert templates.apply({"turns": turns, "w": 0.5}, "row:1") == {
        "messages": turns,
        "weight": 0.5,
    }
    with pytest.raises(DataError, match=r"row:1: the template of 'messages' writes .*tojson"):
        ColumnTemplates({"messages": "{{ turns }}"}).apply({"turns": turns}, "row:1")


@pytest.mark.parametrize(
    "template",
    [
        "{{ missing }}",
        "{{ a.b.c }}",
        "{{ 1 / 0 }}",
        "{{ a.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_that_fails_on_a_row_or_leaves_the_sandbox_is_an_error(template):
    with pytest.raises(DataError, match=r"row:1: the template of 'prompt' fails"):
        ColumnTemplates({"prompt": template}).apply({"a": [1]}, "row:1")


def test_a_template_that_is_not_jinja_is_a_mistake_of_the_recipe():
    with pytest.raises(RecipeError, match="not Jinja"):
        ColumnTemplates({"prompt": "{{ a"})
