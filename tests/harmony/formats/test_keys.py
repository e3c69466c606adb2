"""Every reader knows the same keys; what none of them knows is counted with its likely meaning."""

import json

import numpy as np
import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Header
from gptoss_tune.harmony.formats.registry import read_row
from gptoss_tune.harmony.reading import ReadSettings

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "F.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "b"}'}}

ROWS = {
    "reasoning_content": [USER, {**ANSWER, "reasoning_content": "Two and two."}],
    "reasoning": [USER, {**ANSWER, "reasoning": "Two and two."}],
    "preamble and call": [USER, {**ANSWER, "tool_calls": [CALL]}],
    "call alone": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
    "older call": [USER, {"role": "assistant", "function_call": CALL["function"]}],
    "weight 0": [USER, {**ANSWER, "weight": 0}, USER, ANSWER],
    "train: false": [USER, {**ANSWER, "train": False}, USER, ANSWER],
    "loss: false": [USER, {**ANSWER, "loss": False}, USER, ANSWER],
    "named user": [{**USER, "name": "ada"}, ANSWER],
    "tools in the system message": [
        {"role": "system", "content": "Use it.", "tools": [TOOL]},
        USER,
        {**ANSWER, "tool_calls": [CALL]},
    ],
    "refusal": [USER, {"role": "assistant", "content": None, "refusal": "I cannot."}],
}


def shapes(messages, **row):
    """The same messages under each column, in each spelling."""
    spelled = [
        {"from": message["role"], "value": message.get("content")}
        | {key: value for key, value in message.items() if key not in ("role", "content")}
        for message in messages
    ]
    yield {"messages": messages, **row}
    yield {"conversations": messages, **row}
    yield {"conversations": spelled, **row}
    yield {"messages": spelled, **row}
    yield {"messages": json.dumps(messages), **row}
    yield {"conversations": json.dumps(spelled), **row}


@pytest.mark.parametrize("name", ROWS)
def test_each_column_and_spelling_reads_the_same_keys(name, render):
    declared = name not in ("tools in the system message",)
    row = {"tools": [TOOL]} if declared and "call" in name else {}
    first, *others = shapes(ROWS[name], **row)
    (expected,) = render(first)
    for other in others:
        (got,) = render(other)
        assert got.input_ids.tolist() == expected.input_ids.tolist()
        assert np.array_equal(got.loss_weights, expected.loss_weights)
        assert not read_row(other, "row:1").notes.warnings


def test_a_masked_answer_is_context(render, vocabulary):
    for key in ("train", "loss"):
        (example,) = render({"messages": [USER, {**ANSWER, key: False}, USER, ANSWER]})
        trained = vocabulary.decode(example.input_ids[example.loss_weights > 0].tolist())
        assert trained == "<|channel|>final<|message|>4<|return|>"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"prompt": "2+2?", "completion": "4"},
        {"messages": [USER, {**ANSWER, "channel": "final"}]},
    ],
    ids=["chat", "sharegpt", "completion", "native"],
)
def test_a_system_column_is_the_instructions_in_every_format(row, render):
    (expected,) = render({"messages": [{"role": "system", "content": "In rhyme."}, USER, ANSWER]})
    (got,) = render({"system": "In rhyme.", **row})
    assert got.input_ids.tolist() == expected.input_ids.tolist()


def test_a_system_column_beside_the_same_message_is_said_once(render):
    message = {"role": "system", "content": "In rhyme."}
    (once,) = render({"messages": [message, USER, ANSWER]})
    (both,) = render({"system": "In rhyme.", "messages": [message, USER, ANSWER]})
    assert once.input_ids.tolist() == both.input_ids.tolist()


UNKNOWN = [
    (
        {"messages": [USER, {**ANSWER, "thinkng": "x"}]},
        "'thinkng' of a message of the assistant",
        "thinking",
    ),
    (
        {"conversations": [{**USER, "train_on": 1}, ANSWER]},
        "'train_on' of a message of the user",
        "train",
    ),
    (
        {"messages": [USER, ANSWER], "reasoning_efort": "low"},
        "'reasoning_efort' of a row",
        "reasoning_effort",
    ),
    ({"messages": [USER, ANSWER], "tool": [TOOL]}, "'tool' of a row", "tools"),
    (
        {"prompt": "a", "completion": "b", "system_prompt": "c"},
        "'system_prompt' of a row",
        "system",
    ),
    (
        {"messages": [USER, {**ANSWER, "channel": "final", "wieght": 0}]},
        "'wieght' of a message",
        "weight",
    ),
    ({"prompt": "a", "completion": [ANSWER], "thinking": "c"}, "'thinking' of a row", None),
    (
        {"messages": [{**USER, "tool_calls": [CALL]}, ANSWER]},
        "'tool_calls' of a message of the user",
        None,
    ),
    ({"messages": [USER, ANSWER], "zzzzqq": 1}, "'zzzzqq' of a row", None),
]


@pytest.mark.parametrize(("row", "said", "meant"), UNKNOWN, ids=[said for _, said, _ in UNKNOWN])
def test_a_key_that_is_not_read_is_told_with_its_likely_meaning(row, said, meant):
    (warning,) = read_row(row, "row:1").notes.warnings
    assert said in warning
    if meant is not None:
        assert warning.endswith(f"did you mean {meant!r}?")


def test_empty_values_and_keys_that_the_recipe_names_are_no_finding():
    empty = {"audio": None, "annotations": [], "extra": {}, "note": ""}
    row = {"id": 7, "messages": [USER, {**ANSWER, **empty, "score": 1}]}
    reading = ReadSettings(ignored_keys=("id", "score"))
    assert not read_row(row, "row:1", reading).notes.warnings
    assert len(read_row(row, "row:1").notes.warnings) == 2


def test_findings_stand_in_the_order_of_the_keys():
    names = [f"{letter}{letter}qq" for letter in "hbgaecfdzkw"]
    row = {"messages": [USER, ANSWER], **dict.fromkeys(names, 1)}
    told = [warning.split("'")[1] for warning in read_row(row, "row:1").notes.warnings]
    assert told == names


def test_thinking_after_text_is_refused_and_not_moved_before_it():
    text, thinking = {"type": "text", "text": "A"}, {"type": "thinking", "thinking": "T"}
    for channel in ({}, {"channel": "final"}):
        answer = {"role": "assistant", **channel}
        for content in ([text, thinking, text], [thinking, text, thinking]):
            with pytest.raises(DataError, match=r"content\[[12]\] is thinking after text"):
                read_row({"messages": [USER, {**answer, "content": content}]}, "row:1")
        content = [{"type": "text", "text": "\n"}, thinking, text]
        read = read_row({"messages": [USER, {**answer, "content": content}]}, "row:1")
        assert [message.text for message in read.messages] == ["2+2?", "T", "\nA"]


def test_weights_are_checked_on_every_message_and_two_of_them_must_agree():
    for message in ({**USER, "train": "no"}, {**ANSWER, "loss": 101}):
        with pytest.raises(DataError, match="expected a number from 0 to 100"):
            read_row({"messages": [message, ANSWER]}, "row:1")
    with pytest.raises(DataError, match="different weights in weight and train; keep one"):
        read_row({"messages": [USER, {**ANSWER, "weight": 1, "train": False}]}, "row:1")
    (remark,) = read_row({"messages": [{**USER, "weight": 1}, ANSWER]}, "row:1").notes.remarks
    assert "only the assistant's are trained" in remark


def test_the_weight_of_a_call_in_sharegpt_is_honoured():
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"a": "b"}}', "train": 0}
    row = {"tools": [TOOL], "conversations": [{"from": "human", "value": "x"}, call]}
    assert [message.weight for message in read_row(row, "row:1").messages] == [0.0, 0.0]


BROKEN_ARGUMENTS = {
    "NaN": ('{"a": NaN}', "NaN is not JSON"),
    "Infinity": ('{"a": -Infinity}', "Infinity is not JSON"),
    "1e999": ('{"a": 1e999}', "too large"),
    "a key twice": ('{"a": 1, "a": 2}', "'a' is there twice"),
    "a key twice inside": ('{"a": {"b": 1, "b": 1}}', "'b' is there twice"),
}


@pytest.mark.parametrize("name", BROKEN_ARGUMENTS)
@pytest.mark.parametrize("shape", ["chat", "sharegpt", "native"])
def test_arguments_that_only_python_reads_are_refused(name, shape):
    text, reason = BROKEN_ARGUMENTS[name]
    function = {"name": "f", "arguments": text}
    message = {
        "chat": {"role": "assistant", "tool_calls": [{"function": function}]},
        "sharegpt": {
            "from": "function_call",
            "value": f'{{"name": "f", "arguments": {text}}}',
        },
        "native": {
            "role": "assistant",
            "channel": "commentary",
            "recipient": "functions.f",
            "content": text,
        },
    }[shape]
    with pytest.raises(DataError, match=reason):
        read_row({"tools": [TOOL], "messages": [USER, message]}, "row:1")


def test_arguments_as_an_object_hold_finite_numbers():
    function = {"name": "f", "arguments": {"a": float("inf")}}
    row = {
        "tools": [TOOL],
        "messages": [USER, {"role": "assistant", "tool_calls": [{"function": function}]}],
    }
    with pytest.raises(DataError, match="a number that JSON does not have"):
        read_row(row, "row:1")


def test_harmony_s_own_messages_take_thinking_and_refuse_calls_of_another_shape():
    final = {**ANSWER, "channel": "final"}
    read = read_row({"messages": [USER, {**final, "reasoning_content": "Two."}]}, "row:1")
    assert [message.text for message in read.messages] == ["2+2?", "Two.", "4"]
    assert read.messages[1].header == Header("assistant", channel="analysis")
    with pytest.raises(DataError, match="has a channel and tool_calls"):
        read_row({"messages": [USER, {**final, "tool_calls": [CALL]}]}, "row:1")
