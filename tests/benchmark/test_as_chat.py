"""Questions as chat messages: read back by our own reader they give the very same prompt."""

import dataclasses
import json
from pathlib import Path

import pytest

from gptoss_tune.benchmark.subjects.as_chat import as_chat
from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.prompts import read_questions
from gptoss_tune.harmony.formats.prompt import read_prompt

DATA = Path(__file__).resolve().parents[2] / "data"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
CALL = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "city",
        "description": "A city.\nWith its country.",
        "schema": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
}


def user(text):
    return {"role": "user", "content": text}


ROWS = {
    "plain": {"prompt": "2+2?"},
    "instructions": {"messages": [{"role": "system", "content": "Be brief."}, user("Hi")]},
    "later instructions": {
        "messages": [
            user("Hi"),
            {"role": "assistant", "content": "Hello", "thinking": "Greet."},
            {"role": "system", "content": "Answer in French."},
            user("And now?"),
        ]
    },
    "an earlier thought": {
        "messages": [user("1"), {"role": "assistant", "content": "2", "thinking": "t"}, user("3")]
    },
    "tools": {"messages": [user("Weather?")], "tools": [TOOL]},
    "a turn in progress": {
        "messages": [
            user("Weather in Rome?"),
            {"role": "assistant", "content": "Let me look.", "thinking": "Ask.",
             "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        ],
        "tools": [TOOL],
    },
    "two calls one after the other": {
        "messages": [
            user("Weather in Rome and Oslo?"),
            {"role": "assistant", "thinking": "Rome.", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "a", "content": "sunny"},
            {"role": "assistant", "thinking": "Oslo.", "tool_calls": [CALL | {"id": "b"}]},
            {"role": "tool", "tool_call_id": "b", "content": "rain"},
            {"role": "assistant", "content": "Sunny and rain.", "thinking": "Done."},
            user("Thanks. And Paris?"),
        ],
        "tools": [TOOL],
    },
    "an answer format": {"messages": [user("A city?")], "response_format": FORMAT},
    "a format without a description": {
        "messages": [user("A city?")],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "object"}},
        },
    },
    "names and special tokens as text": {
        "messages": [{"role": "user", "name": "ann", "content": "<|end|><|start|>assistant é\n "}]
    },
    "an effort of its own": {"prompt": "2+2?", "reasoning_effort": "high"},
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("effort", ["low", "high"])
def test_a_question_comes_back_as_the_same_ids(questions, renderer, name, effort):
    (question,) = questions(ROWS[name], efforts=(effort,))
    chat = as_chat(question, renderer)
    json.dumps(chat)
    assert chat["reasoning_effort"] == question.effort
    # Only fields that a chat API has, and roles that it knows.
    assert chat.keys() <= {"messages", "tools", "response_format", "reasoning_effort"}
    assert {m["role"] for m in chat["messages"]} <= {"developer", "user", "assistant", "tool"}
    again = renderer.render_prompt(read_prompt(chat, "again"))
    assert tuple(again) == question.prompt_ids


@pytest.mark.parametrize(
    "file", ["conversations/eval", "conversations/tools", "conversations/multi_turn",
             "conversations/reasoning", "prompts/reasoning", "prompts/tools", "tiny/train"]
)  # fmt: skip
def test_shipped_rows_come_back_as_the_same_ids(renderer, file):
    path = str(DATA / f"{file}.jsonl")
    asked = read_questions([path], renderer, limit=500, efforts=["medium"], max_new_tokens=64)
    assert asked
    refused = 0
    for question in asked:
        try:
            as_chat(question, renderer)  # which compares them
        except DataError as error:
            assert "built-in tools" in str(error), error
            refused += 1
    assert refused < len(asked) / 4


def test_the_chain_of_thought_of_a_turn_in_progress_is_sent(questions, renderer):
    (question,) = questions(ROWS["a turn in progress"])
    said = as_chat(question, renderer)["messages"][1]
    assert said["thinking"] == said["reasoning_content"] == "Ask."
    assert said["content"] == "Let me look." and said["tool_calls"][0]["id"] == "call_1"


def test_built_in_tools_cannot_be_asked_for(questions, renderer):
    (question,) = questions({"prompt": "Search.", "builtin_tools": ["browser"]})
    with pytest.raises(DataError, match=r"sums\.jsonl:1: announces the built-in tools browser"):
        as_chat(question, renderer)


def test_a_question_that_would_be_asked_otherwise_is_refused(questions, renderer):
    (question,) = questions(ROWS["plain"])
    other = dataclasses.replace(question, prompt_ids=(*question.prompt_ids[:-1], 5))
    with pytest.raises(DataError, match="cannot be asked through a chat API"):
        as_chat(other, renderer)
