"""Turns spread over messages, late instructions, text forms of tables, names that are mapped."""

import json

import numpy as np
import pytest
from openai_harmony import Conversation, Role

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.formats.openai_chat import read_chat
from gptoss_tune.harmony.formats.registry import read_row
from gptoss_tune.harmony.reading import ReadSettings
from gptoss_tune.harmony.render import Renderer, RenderSettings

USER = {"role": "user", "content": "Oslo and Rome?"}
FINAL = {"role": "assistant", "content": "3 and 20."}
TOOL = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def call(id_, city):
    return {"id": id_, "function": {"name": "weather", "arguments": json.dumps({"city": city})}}


def result(id_, text):
    return {"role": "tool", "tool_call_id": id_, "content": text}


def asks(*calls, **fields):
    return {"role": "assistant", "tool_calls": list(calls), **fields}


ONE_MESSAGE = {
    "tools": [TOOL],
    "messages": [
        USER,
        asks(call("a", "Oslo"), call("b", "Rome")),
        result("a", "3"),
        result("b", "20"),
        FINAL,
    ],
}
SPREAD = {
    "two messages": [
        USER,
        asks(call("a", "Oslo")),
        asks(call("b", "Rome")),
        result("a", "3"),
        result("b", "20"),
        FINAL,
    ],
    "results the other way": [
        USER,
        asks(call("a", "Oslo")),
        asks(call("b", "Rome")),
        result("b", "20"),
        result("a", "3"),
        FINAL,
    ],
    "sharegpt": [
        {"from": "human", "value": "Oslo and Rome?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
        {"from": "observation", "value": "3"},
        {"from": "observation", "value": "20"},
        {"from": "gpt", "value": "3 and 20."},
    ],
    "calls without a function object": [
        USER,
        asks({"id": "a", "name": "weather", "arguments": {"city": "Oslo"}}, call("b", "Rome")),
        result("a", "3"),
        result("b", "20"),
        FINAL,
    ],
}


@pytest.mark.parametrize("name", SPREAD)
def test_calls_of_one_turn_in_several_messages_are_parallel_calls(name, render):
    (expected,) = render(ONE_MESSAGE)
    (got,) = render({"tools": [TOOL], "messages": SPREAD[name]})
    assert got.input_ids.tolist() == expected.input_ids.tolist()
    assert np.array_equal(got.loss_weights, expected.loss_weights)


def test_what_is_said_before_a_later_call_stands_before_it():
    messages = [
        USER,
        asks(call("a", "Oslo"), thinking="One."),
        asks(call("b", "Rome"), thinking="Two."),
    ]
    messages += [result("a", "3"), result("b", "20"), FINAL]
    read = read_row({"tools": [TOOL], "messages": messages}, "row:1")
    texts = [message.text for message in read.messages]
    assert texts[1:] == [
        "One.",
        '{"city": "Oslo"}',
        "3",
        "Two.",
        '{"city": "Rome"}',
        "20",
        "3 and 20.",
    ]


def test_an_id_that_is_open_twice_and_a_result_that_never_comes_are_refused():
    twice = [USER, asks(call("a", "Oslo")), asks(call("a", "Rome")), result("a", "3"), FINAL]
    with pytest.raises(DataError, match="uses an id twice"):
        read_row({"tools": [TOOL], "messages": twice}, "row:1")
    never = [USER, asks(call("a", "Oslo")), asks(call("b", "Rome")), result("a", "3"), FINAL]
    with pytest.raises(DataError, match=r"the call b of 'functions\.weather' has no result"):
        read_row({"tools": [TOOL], "messages": never}, "row:1")


def test_a_thought_may_stand_in_a_message_of_its_own(render):
    thought = {"role": "assistant", "content": None, "thinking": "Easy."}
    for after in (FINAL, asks(call("a", "Oslo"))):
        (expected,) = render({"tools": [TOOL], "messages": [USER, {**after, "thinking": "Easy."}]})
        (got,) = render({"tools": [TOOL], "messages": [USER, thought, after]})
        assert got.input_ids.tolist() == expected.input_ids.tolist()
        assert np.array_equal(got.loss_weights, expected.loss_weights)
    with pytest.raises(DataError, match="the assistant's turn ends in channel 'analysis'"):
        read_row({"messages": [USER, thought, USER, FINAL]}, "row:1")
    with pytest.raises(DataError, match="neither content nor tool_calls"):
        read_row({"messages": [USER, thought]}, "row:1")


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_in_the_middle_are_read_alike_by_every_reader(role, render):
    late = {"role": role, "content": "Now in French."}
    native = {**FINAL, "channel": "final"}
    (expected,) = render({"messages": [USER, native, late, USER, native]})
    (chat,) = render({"messages": [USER, FINAL, late, USER, FINAL]})
    spelled = [{"from": m["role"], "value": m["content"]} for m in (USER, FINAL, late, USER, FINAL)]
    (sharegpt,) = render({"conversations": spelled})
    for got in (chat, sharegpt):
        assert got.input_ids.tolist() == expected.input_ids.tolist()
        assert np.array_equal(got.loss_weights, expected.loss_weights)


@pytest.mark.parametrize("role", ["developer", "system", "user"])
def test_a_reminder_after_a_result_keeps_the_thoughts_of_the_turn_as_served(
    role, render, vocabulary
):
    reminder = {"role": role, "content": "Be brief."}
    asked = [USER, asks(call("a", "Oslo"), thinking="Look."), result("a", "3"), reminder]
    row = {"tools": [TOOL], "messages": [*asked, FINAL]}
    (example,) = render(row)
    text = vocabulary.decode(example.input_ids.tolist())
    assert "Look." in text and text.index("Look.") < text.index("Be brief.")
    prompt = read_chat({**row, "messages": asked}, "row:1", complete=False)
    ids = Renderer(vocabulary, RenderSettings()).render_prompt(prompt)
    assert example.input_ids[: len(ids)].tolist() == ids
    parsed = vocabulary.encoding.parse_messages_from_completion_tokens(ids[:-2])
    served = Conversation.from_messages(parsed)
    assert vocabulary.encoding.render_conversation_for_completion(served, Role.ASSISTANT) == ids


@pytest.mark.parametrize(
    "part",
    [
        {"type": "thinking", "thinking": "Easy."},
        {"type": "thinking", "thinking": [{"type": "text", "text": "Easy."}]},
        {"type": "reasoning", "text": "Easy."},
        {"type": "reasoning", "reasoning": "Easy."},
        {"type": "reasoning_text", "text": "Easy."},
    ],
)
def test_thinking_may_be_a_part_of_the_content(part, render):
    text = {"type": "text", "text": "3 and 20."}
    (expected,) = render({"messages": [USER, {**FINAL, "thinking": "Easy."}]})
    for channel in ({}, {"channel": "final"}):
        (got,) = render({"messages": [USER, {**FINAL, **channel, "content": [part, text]}]})
        assert got.input_ids.tolist() == expected.input_ids.tolist()
    with pytest.raises(DataError, match="is a part of type 'thinking' with its text in no key"):
        read_row({"messages": [USER, {**FINAL, "content": [{"type": "thinking"}]}]}, "row:1")


def test_a_refusal_is_an_answer():
    part = {"type": "refusal", "refusal": "I cannot."}
    for message in ({"content": None, "refusal": "I cannot."}, {"content": [part]}):
        read = read_row({"messages": [USER, {"role": "assistant", **message}]}, "row:1")
        assert read.messages[-1].text == "I cannot."
        assert read.messages[-1].header.channel == "final"
    with pytest.raises(DataError, match="has content and a refusal"):
        read_row({"messages": [USER, {**FINAL, "refusal": "I cannot."}]}, "row:1")


TABLE_FORMS = {
    "text null": "null",
    "empty text": "",
    "blank text": " ",
    "empty list as text": "[]",
}


@pytest.mark.parametrize("name", TABLE_FORMS)
def test_text_that_says_no_tools_is_no_tools(name, render):
    (expected,) = render({"messages": [USER, FINAL]})
    (got,) = render({"tools": TABLE_FORMS[name], "messages": [USER, FINAL]})
    assert got.input_ids.tolist() == expected.input_ids.tolist()


@pytest.mark.parametrize(
    "tools",
    [
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        json.dumps([json.dumps(TOOL)]),
        TOOL,
        json.dumps(TOOL),
    ],
    ids=["text", "list of texts", "text of a list of texts", "one alone", "one alone as text"],
)
def test_tools_are_read_in_the_forms_that_tables_force_on_them(tools, render):
    (expected,) = render(ONE_MESSAGE)
    (got,) = render({**ONE_MESSAGE, "tools": tools})
    assert got.input_ids.tolist() == expected.input_ids.tolist()


def test_messages_as_text_that_is_python_are_refused_with_the_cause():
    for column in ("messages", "conversations"):
        with pytest.raises(DataError, match=f"{column} is text that is not JSON"):
            read_row({column: "[{'role': 'user'}]"}, "row:1")


def test_calls_as_json_text_are_read():
    message = {"role": "assistant", "tool_calls": json.dumps([call("a", "Oslo")])}
    read = read_row({"tools": [TOOL], "messages": [USER, message]}, "row:1")
    assert read.messages[-1].header.recipient == "functions.weather"


def test_roles_and_tool_names_are_mapped_by_the_recipe():
    reading = ReadSettings(
        roles=(("Klant", "user"), ("Agent", "assistant")), tool_names=(("get.weather!", "weather"),)
    )
    named = {**call("a", "Oslo")["function"], "name": "get.weather!"}
    messages = [
        {"role": "Klant", "content": "Oslo?"},
        {"role": "Agent", "tool_calls": [{"id": "a", "function": named}]},
        {"role": "tool", "name": "get.weather!", "tool_call_id": "a", "content": "3"},
        {"role": "Agent", "content": "3."},
    ]
    row = {"tools": [{**TOOL, "name": "get.weather!"}], "messages": messages}
    read = read_row(row, "row:1", reading)
    assert [m.header.role for m in read.messages] == ["user", "assistant", "tool", "assistant"]
    assert read.recipients() == {"functions.weather"}
    with pytest.raises(DataError, match=r"role is 'Klant'; .*data.roles"):
        read_row({"messages": messages}, "row:1")


def test_names_are_mapped_in_harmony_s_own_shape():
    reading = ReadSettings(tool_names=(("old", "weather"),))
    messages = [
        USER,
        {
            "role": "assistant",
            "channel": "commentary",
            "recipient": "functions.old",
            "content": "{}",
        },
        {"role": "tool", "name": "functions.old", "content": "3"},
        {**FINAL, "channel": "final"},
    ]
    read = read_row({"tools": [{"name": "old"}], "messages": messages}, "row:1", reading)
    assert read.messages[1].header.recipient == read.messages[2].header.name == "functions.weather"


def test_other_columns_are_read_as_json_text_too(render):
    schema = {"name": "n", "schema": {"type": "object"}}
    row = {
        "response_format": {"type": "json_schema", "json_schema": schema},
        "builtin_tools": ["python"],
        "channel_weights": {"final": 2},
        "messages": [USER, FINAL],
    }
    (expected,) = render(row)
    (got,) = render({key: json.dumps(value) for key, value in row.items()})
    assert got.input_ids.tolist() == expected.input_ids.tolist()
    assert np.array_equal(got.loss_weights, expected.loss_weights)
    (plain,) = render({"messages": [USER, FINAL]})
    (none,) = render({"messages": [USER, FINAL], "response_format": "null", "builtin_tools": ""})
    assert none.input_ids.tolist() == plain.input_ids.tolist()
