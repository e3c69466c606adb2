"""Labelled answers: a prompt that is not trained, an answer, and whether it is a good one."""

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.formats.labelled import read_labelled
from gptoss_tune.harmony.reading import ReadSettings


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def told(read):
    """Channel or role, text and weight of every message."""
    return [
        (header.channel or header.role, text, weight)
        for header, text, weight in read.conversation.messages
    ]


ASKED, ANSWER = user("2+2?"), assistant("4")
SAME = {
    "texts": {"prompt": "2+2?", "completion": "4"},
    "messages each": {"prompt": [ASKED], "completion": [ANSWER]},
    "one message each": {"prompt": ASKED, "completion": ANSWER},
    "a completion that repeats the prompt": {"prompt": "2+2?", "completion": [ASKED, ANSWER]},
    "chat": {"messages": [ASKED, ANSWER]},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
    },
    "harmony's own": {"messages": [ASKED, {**ANSWER, "channel": "final"}]},
    "null columns": {"prompt": "2+2?", "completion": "4", "messages": None, "tools": None},
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("label", [True, False])
def test_every_shape_is_a_prompt_and_a_labelled_answer(name, label):
    read = read_labelled({**SAME[name], "label": label}, "row:1")
    assert told(read) == [("user", "2+2?", 0.0), ("final", "4", 1.0)]
    assert read.desirable is label and read.prompt_length == 1
    assert not read.conversation.notes.warnings


@pytest.mark.parametrize(
    ("label", "desirable"),
    [(1, True), (0, False), (1.0, True), ("true", True), ("False", False), ("0", False)],
)
def test_a_label_may_be_written_as_a_table_writes_it(label, desirable):
    row = {"prompt": "2+2?", "completion": "4", "label": label}
    assert read_labelled(row, "row:1").desirable is desirable


@pytest.mark.parametrize("label", ["good", "", 2, -1, 0.5, [True], {"a": 1}, "yes"])
def test_any_other_label_is_refused_with_a_template_that_maps_it(label):
    row = {"prompt": "2+2?", "completion": "4", "label": label}
    with pytest.raises(DataError, match=r"row:1: label is .*; expected true or 1") as caught:
        read_labelled(row, "row:1")
    assert "(columns: {label: \"{{ label == 'good' }}\", ...})" in str(caught.value)


def test_the_answer_of_a_conversation_is_the_last_turn_with_its_thoughts_and_calls():
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        user("Hi"),
        assistant("Hello", thinking="h", weight=0.5),
        user("go"),
        assistant(None, thinking="t", tool_calls=[call]),
        {"role": "tool", "tool_call_id": "1", "content": "r"},
        assistant("done", weight=0),
    ]
    row = {"tools": [{"name": "f"}], "messages": messages, "label": False, "weight": 3}
    read = read_labelled(row, "row:1")
    assert told(read) == [
        ("user", "Hi", 0.0),
        ("analysis", "h", 0.0),
        ("final", "Hello", 0.0),
        ("user", "go", 0.0),
        ("analysis", "t", 1.0),
        ("commentary", "{}", 1.0),
        ("commentary", "r", 0.0),
        ("final", "done", 0.0),
    ]
    assert read.prompt_length == 4 and read.conversation.weight == 3


def test_a_completion_says_itself_where_the_answer_begins():
    row = {"prompt": "go", "completion": [assistant("A"), user("more"), assistant("B")], "label": 1}
    assert told(read_labelled(row, "row:1")) == [
        ("user", "go", 0.0),
        ("final", "A", 1.0),
        ("user", "more", 0.0),
        ("final", "B", 1.0),
    ]


def test_thoughts_of_a_text_stand_in_a_column_or_in_tags():
    row = {"prompt": "2+2?", "completion": "4", "thinking": "t", "label": True}
    expected = [("user", "2+2?", 0.0), ("analysis", "t", 1.0), ("final", "4", 1.0)]
    assert told(read_labelled(row, "row:1")) == expected
    row = {"prompt": "2+2?", "completion": "<think>t</think>4", "label": True}
    reading = ReadSettings(thinking_tags="split")
    assert told(read_labelled(row, "row:1", reading=reading)) == expected


ROW = {"prompt": "2+2?", "completion": "4", "label": True}
REFUSED = [
    ({**ROW, "label": None}, "the answer has no label; add true (a good answer) or false"),
    ({"messages": [ASKED, ANSWER]}, "or set method.name to sft to train on every answer"),
    (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        "set method.name to dpo, or write one row for each answer",
    ),
    ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "is a preference pair"),
    ({"prompt": "a", "label": True}, "is a prompt without an answer; add completion and label"),
    ({"question": "a", "label": 1}, "(got 'question', 'label'); expected prompt, completion and"),
    ({**ROW, "completion": ""}, "completion is empty; add the answer"),
    ({**ROW, "completion": assistant("4", weight=0.5)}, "a message of completion has weight 0.5"),
    (
        {"messages": [ASKED, assistant("4", weight=2)], "label": 1},
        "a message of the last turn has weight 2;",
    ),
    ({**ROW, "channel_weights": {"final": 1}}, "the row has channel_weights"),
    ({**ROW, "prompt": [ASKED, ANSWER]}, "prompt ends in a message of the assistant"),
    ({**ROW, "completion": [user("3+3?"), ANSWER]}, "and does not repeat the prompt before it"),
    ({"messages": [ANSWER], "label": True}, "the answer has no prompt"),
    ({"messages": [ASKED], "label": True}, "last message has role 'user'"),
]


@pytest.mark.parametrize(("row", "reason"), REFUSED, ids=[reason[:50] for _, reason in REFUSED])
def test_a_row_without_a_labelled_answer_is_refused_with_its_reason(row, reason):
    with pytest.raises(DataError) as caught:
        read_labelled(row, "row:1")
    assert reason in str(caught.value)
