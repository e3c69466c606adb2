"""Messages of preference rows, and what is read of such a row or said against it."""

import json

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.formats.preference import read_preference
from gptoss_tune.harmony.reading import ReadSettings


def user(text, **fields):
    return {"role": "user", "content": text, **fields}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def told(conversation):
    """Channel or role, text and weight of every message."""
    return [
        (header.channel or header.role, text, weight)
        for header, text, weight in conversation.messages
    ]


def read(row, **reading):
    return read_preference(row, "d.jsonl:3", reading=ReadSettings(**reading))


def refusal(row, **reading):
    with pytest.raises(DataError) as caught:
        read(row, **reading)
    assert str(caught.value).startswith("d.jsonl:3: ")
    return str(caught.value)


ASKED = [user("2+2?")]
CHOSEN, REJECTED = assistant("4"), assistant("5")
HISTORY = [user("Hi"), assistant("Hello"), *ASKED]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
OTHER = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 2}'}}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "F.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2+2?\n\nAssistant:"

# The prompt is "2+2?", the answers are 4 and 5.
ONE_TURN = {
    "texts": {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    "messages": {"prompt": ASKED, "chosen": [CHOSEN], "rejected": [REJECTED]},
    "one message each": {"prompt": ASKED[0], "chosen": CHOSEN, "rejected": REJECTED},
    "a text and a message": {"prompt": "2+2?", "chosen": "4", "rejected": REJECTED},
    "null columns": {
        **{"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        **dict.fromkeys(["tools", "system", "thinking", "messages", "completion", "label"]),
    },
    "whole conversations": {"chosen": [*ASKED, CHOSEN], "rejected": [*ASKED, REJECTED]},
    "one whole conversation": {"prompt": "2+2?", "chosen": [*ASKED, CHOSEN], "rejected": "5"},
    "UltraFeedback": {
        "prompt": "2+2?",
        "prompt_id": "ab12",
        "chosen": [*ASKED, CHOSEN],
        "rejected": [*ASKED, REJECTED],
        "messages": [*ASKED, CHOSEN],
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    },
    "UltraFeedback without prompt": {
        "chosen": [*ASKED, CHOSEN],
        "rejected": [*ASKED, REJECTED],
        "messages": [*ASKED, CHOSEN],
    },
    "HH": {
        "chosen": "\n\nHuman: 2+2?\n\nAssistant: 4",
        "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5",
    },
    "HH with a prompt": {
        "prompt": "\n\nHuman: 2+2?\n\nAssistant:",
        "chosen": " 4",
        "rejected": " 5",
    },
    "a table's JSON text": {
        "prompt": json.dumps(ASKED),
        "chosen": json.dumps([CHOSEN]),
        "rejected": json.dumps(REJECTED),
    },
    "a table's whole conversations": {
        "chosen": json.dumps([*ASKED, CHOSEN]),
        "rejected": json.dumps([*ASKED, REJECTED]),
    },
    "HelpSteer3": {
        "domain": "general",
        "language": "english",
        "context": ASKED,
        "response1": "4",
        "response2": "5",
        "overall_preference": -2,
        "individual_preference": [{"score": -2, "reasoning": "r", "feedback1": "f"}],
    },
    "HelpSteer3, the second is better": {
        "context": ASKED,
        "response1": "5",
        "response2": "4",
        "overall_preference": 3,
    },
    "HelpSteer3 of a table": {
        "context": json.dumps(ASKED),
        "response1": "5",
        "response2": "4",
        "overall_preference": 1.0,
    },
    "OpenAI": {
        "input": {"messages": ASKED, "tools": [], "parallel_tool_calls": True},
        "preferred_output": [CHOSEN],
        "non_preferred_output": [REJECTED],
    },
    "OpenAI of a table": {
        "input": json.dumps({"messages": ASKED}),
        "preferred_output": json.dumps([CHOSEN]),
        "non_preferred_output": json.dumps([REJECTED]),
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "2+2?"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    "ShareGPT with texts": {
        "conversations": json.dumps([{"from": "human", "value": "2+2?"}]),
        "chosen": "4",
        "rejected": "5",
    },
    "messages beside the answers": {"messages": ASKED, "chosen": "4", "rejected": "5"},
    "harmony's own and text": {
        "prompt": "2+2?",
        "chosen": [{"role": "assistant", "channel": "final", "content": "4"}],
        "rejected": "5",
    },
    "harmony's own prompt": {
        "prompt": [{"role": "developer", "content": [{"type": "developer_content"}]}, *ASKED],
        "chosen": "4",
        "rejected": "5",
    },
}
