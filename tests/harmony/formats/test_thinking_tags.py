"""Thoughts in the text of an answer: told, and split off when the recipe says so."""

import time

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.formats.registry import read_row
from gptoss_tune.harmony.reading import ReadSettings

SPLIT = ReadSettings(thinking_tags="split")
TEXTS = {
    "think": "<think>\nTwo.\n</think>\n\n4",
    "capitals": "<Think>Two.</Think>4",
    "thinking": "<thinking>Two.</thinking>\n4",
    "reasoning": "\n<reasoning>Two.</reasoning> 4",
    "thought": "<thought>Two.</thought>4",
    "opened by the template": "Two.\n</think>\n\n4",
    "begin_of_thought": (
        "<|begin_of_thought|>\n\nTwo.\n\n<|end_of_thought|>\n\n"
        "<|begin_of_solution|>\n\n4\n\n<|end_of_solution|>"
    ),
    "harmony's own text": (
        "<|channel|>analysis<|message|>Two.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>4<|return|>"
    ),
}


def rows(text):
    user = {"role": "user", "content": "2+2?"}
    yield {"messages": [user, {"role": "assistant", "content": text}]}
    yield {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": text}]}
    yield {"prompt": "2+2?", "completion": text}
    yield {"messages": [user, {"role": "assistant", "channel": "final", "content": text}]}


@pytest.mark.parametrize("name", TEXTS)
def test_thoughts_are_split_off_in_every_format(name):
    for row in rows(TEXTS[name]):
        read = read_row(row, "row:1", SPLIT)
        said = [(message.header.channel, message.text) for message in read.messages]
        assert said == [(None, "2+2?"), ("analysis", "Two."), ("final", "4")]
        assert not read.notes.warnings


@pytest.mark.parametrize("name", TEXTS)
def test_thoughts_that_are_kept_are_told_in_every_format(name):
    for row in rows(TEXTS[name]):
        read = read_row(row, "row:1")
        assert read.messages[-1].text == TEXTS[name]
        (warning,) = read.notes.warnings
        assert "an answer spells thoughts in its text" in warning
        assert "data.thinking_tags" in warning


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>\n\n</think>\n\n4", ["4"]),
        ("<think>a</think><think>b</think>4", ["a", "b", "4"]),
        ("Tags such as <think> open a thought.", ["Tags such as <think> open a thought."]),
        ("<think>never ends", ["<think>never ends"]),
        ("<think>İstanbul İ</think>Answer here", ["İstanbul İ", "Answer here"]),
        ("<Thought>İİ</thoughT>İ</thought>", ["İİ", "İ</thought>"]),
        ("a < b and <b>bold</b>", ["a < b and <b>bold</b>"]),
    ],
)
def test_only_thoughts_at_the_start_are_split(text, said):
    for row in rows(text):
        assert [message.text for message in read_row(row, "row:1", SPLIT).messages[1:]] == said


def test_a_thought_beside_a_call_leaves_no_empty_preamble():
    call = {"function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "<think>Call it.</think>", "tool_calls": [call]}
    row = {"tools": [{"name": "f"}], "messages": [{"role": "user", "content": "x"}, message]}
    headers = [message.header for message in read_row(row, "row:1", SPLIT).messages]
    assert [(header.channel, header.recipient) for header in headers[1:]] == [
        ("analysis", None),
        ("commentary", "functions.f"),
    ]


def test_a_thought_alone_is_no_answer():
    for row in rows("<think>Two.</think>"):
        with pytest.raises(DataError, match="the last message is in channel 'analysis'"):
            read_row(row, "row:1", SPLIT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Write </think> to end it.", ["T", "Write </think> to end it."]),
        ("<think> T\n</think>4", ["T", "4"]),
        ("<think>U</think>4", ["T", "U", "4"]),
    ],
)
@pytest.mark.parametrize("own", ["T", "\nT "])
def test_a_thought_of_its_own_leaves_a_lone_closing_tag_in_the_answer(text, said, own):
    user = {"role": "user", "content": "2+2?"}
    answer = {"role": "assistant", "content": text}
    own_message = {"role": "assistant", "channel": "analysis", "content": own}
    for messages in (
        [user, {**answer, "thinking": own}],
        [user, {**answer, "reasoning_content": own}],
        [user, {**answer, "content": [{"type": "thinking", "thinking": own}, as_part(text)]}],
        [user, {**answer, "thinking": own, "channel": "final"}],
        [user, own_message, {**answer, "channel": "final"}],
    ):
        read = read_row({"messages": messages}, "row:1", SPLIT)
        assert [message.text.strip() for message in read.messages[1:]] == said


def as_part(text):
    return {"type": "text", "text": text}


EMPTY = ["<think>\n</think>", "<think></think><think> </think>\n", "</think>"]


@pytest.mark.parametrize("text", EMPTY)
def test_an_answer_of_empty_tags_alone_is_refused_wherever_it_stands(text):
    user = {"role": "user", "content": "And 3+3?"}
    for row in rows(text):
        with pytest.raises(DataError, match="the tags of a thought and nothing else"):
            read_row(row, "row:1", SPLIT)
        if "messages" in row:
            last = {**row["messages"][-1], "content": "6"}
            longer = {"messages": [*row["messages"], user, last]}
            with pytest.raises(DataError, match="the tags of a thought and nothing else"):
                read_row(longer, "row:1", SPLIT)


@pytest.mark.parametrize("text", EMPTY[:2])
def test_empty_tags_before_a_call_leave_no_empty_preamble(text):
    call = {"function": {"name": "f", "arguments": "{}"}}
    for more in ({}, {"thinking": "T"}):
        message = {"role": "assistant", "content": text, "tool_calls": [call], **more}
        row = {"tools": [{"name": "f"}], "messages": [{"role": "user", "content": "x"}, message]}
        texts = [message.text for message in read_row(row, "row:1", SPLIT).messages]
        assert texts == ["x", *more.values(), "{}"]


def test_a_text_of_nothing_but_tags_takes_no_time():
    start = time.monotonic()
    for row in rows("<think></think>" * 20_000 + "4"):
        read_row(row, "row:1", SPLIT)
    assert time.monotonic() - start < 2


BLANK = [
    {"messages": [{"role": "system", "content": "{}"}]},
    {"messages": [{"role": "developer", "content": "{}"}]},
    {"system": "{}", "messages": []},
    {"conversations": [{"from": "system", "value": "{}"}]},
    {
        "messages": [
            {"role": "developer", "content": [{"type": "developer_content", "instructions": "{}"}]}
        ]
    },
]


@pytest.mark.parametrize("blank", ["", " \n"])
@pytest.mark.parametrize("row", BLANK, ids=range(len(BLANK)))
def test_blank_instructions_render_no_developer_message(row, blank, render):
    import json

    row = json.loads(json.dumps(row).replace("{}", json.dumps(blank)[1:-1]))
    plain = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    if "developer_content" in json.dumps(row):
        plain[1]["channel"] = "final"
    column = "conversations" if "conversations" in row else "messages"
    (got,) = render({**row, column: [*row[column], *plain]})
    (expected,) = render({"messages": plain})
    assert got.input_ids.tolist() == expected.input_ids.tolist()
