"""Rows that cannot be trained on: each is refused with its reason, whatever its shape."""

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation, Header, Message
from gptoss_tune.harmony.formats.finish import finish
from gptoss_tune.harmony.formats.registry import read_row

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}

TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "1", "function": {"name": "f", "arguments": "{}"}}


def with_call(call, tools=(TOOL,), after=()):
    return {
        "tools": list(tools),
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "tool_calls": [call] if isinstance(call, dict) else call},
            *after,
        ],
    }


def function(**fields):
    return {"id": "1", "function": {"name": "f", "arguments": "{}", **fields}}


BAD_ROWS = [
    (with_call(function(name="g")), "calls the undeclared tool 'functions.g' (declared: functi"),
    (with_call(CALL, tools=()), "calls the undeclared tool 'functions.f' (declared: none)"),
    (with_call(function(arguments="{city: 1}")), "arguments is not JSON (Expecting property name"),
    (with_call(function(arguments="[1]")), "arguments is a list in JSON; expected an object"),
    (with_call(function(arguments=None)), "arguments is null; expected text"),
    (with_call(function(name="a b")), "name is 'a b'; expected 1 to 64 of the characters"),
    (with_call(function(name=None)), "name is null"),
    (with_call([CALL, CALL]), "uses an id twice"),
    (with_call([3]), "tool_calls[0] has no function"),
    (with_call([CALL, {**CALL, "id": "2"}]), "the call 1 of 'functions.f' has no result"),
    (with_call(CALL, after=[{"role": "user", "content": "y"}]), "has no result"),
    (
        with_call(CALL, after=[{"role": "tool", "tool_call_id": "9", "content": "r"}]),
        "answers a call with id '9' that is not open",
    ),
    (
        with_call(CALL, after=[{"role": "tool", "tool_call_id": "1", "content": None}]),
        "content is null",
    ),
    (
        with_call(CALL, after=[{"role": "tool", "tool_call_id": "1", "name": "g", "content": "r"}]),
        "name is 'g', the call was of 'f'",
    ),
    (
        with_call(CALL, after=[{"role": "tool", "tool_call_id": "1", "content": "r"}]),
        "last message has role 'tool'; training needs an assistant reply",
    ),
    (with_call(CALL, tools=[TOOL, TOOL]), "the tool 'f' is declared twice"),
    (with_call(CALL, tools=[3]), "tools[0] is a number; expected a function declaration"),
    (with_call(CALL, tools=[{"name": "f", "parameters": 3}]), "parameters is a number"),
    ({**GOOD, "tools": "x"}, "tools is text that is not JSON"),
    ({**GOOD, "tools": {}}, "tools is an object; expected a list"),
    ({**GOOD, "weight": True}, "weight is true; expected a number from 0 to 100"),
    ({**GOOD, "weight": -1}, "weight is -1; expected a number from 0 to 100"),
    ({**GOOD, "channel_weights": {"thoughts": 1}}, "channel_weights is an object; expected weigh"),
    ({**GOOD, "reasoning_effort": "max"}, "reasoning_effort is 'max'; expected low, medium or"),
    ({**GOOD, "builtin_tools": ["shell"]}, "builtin_tools is a list; expected a list of browser"),
    ({**GOOD, "response_format": {"type": "xml"}}, "response_format is not understood"),
    (
        {"messages": [GOOD["messages"][0], {**GOOD["messages"][1], "name": "bot"}]},
        "the server writes the assistant's header and knows no names",
    ),
    (
        {"messages": [GOOD["messages"][0], {**GOOD["messages"][1], "weight": "1"}]},
        "messages[1].weight is '1'",
    ),
    (
        {"messages": [GOOD["messages"][0], {"role": "assistant", "thinking": "a"}]},
        "has neither content nor tool_calls",
    ),
    (
        {
            "messages": [
                GOOD["messages"][0],
                {**GOOD["messages"][1], "thinking": "a", "reasoning": "b"},
            ]
        },
        "different texts in thinking and reasoning",
    ),
    ({"conversations": [{"from": "alien", "value": "x"}]}, "conversations[0].from is 'alien'"),
    ({"conversations": "x"}, "conversations is text that is not JSON"),
    (
        {"conversations": [{"from": "function_call", "value": "f(1)"}]},
        "conversations[0].value is not JSON",
    ),
    ({"prompt": 3, "completion": "x"}, "prompt is 3; expected text or a list of messages"),
    ({"prompt": [3], "completion": "x"}, "prompt[0] is a number; expected a message"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS, ids=[reason[:40] for _, reason in BAD_ROWS])
def test_a_bad_row_is_refused_with_its_reason(row, reason):
    with pytest.raises(DataError) as caught:
        read_row(row, "d.jsonl:5")
    assert str(caught.value).startswith("d.jsonl:5: ")
    assert reason in str(caught.value)


def native(*messages):
    return {"messages": [{"role": "user", "content": "x"}, *messages]}


FINAL = {"role": "assistant", "channel": "final", "content": "a"}
BAD_NATIVE = [
    (native({**FINAL, "channel": "inner"}), "channel is 'inner'"),
    (native({**FINAL, "channel": None, "recipient": "functions.f"}), "channel is null"),
    (native({**FINAL, "recipient": "functions.f"}), "is a call in channel 'final'"),
    (native({**FINAL, "channel": "analysis"}), "the last message is in channel 'analysis'"),
    (native({**FINAL, "content_type": "yaml"}), "content_type is 'yaml'"),
    (
        native({**FINAL, "channel": "analysis"}, {"role": "user", "content": "y"}, FINAL),
        "turn ends",
    ),
    (native(FINAL, {"role": "tool", "name": "functions.f", "content": "r"}), "follows no call"),
    (
        {
            "messages": [
                {
                    "role": "system",
                    "content": [{"type": "system_content", "model_identity": "I am Bob."}],
                },
                FINAL,
            ]
        },
        "the identity stays as released",
    ),
    (
        {
            "messages": [
                {
                    "role": "system",
                    "content": [
                        {"type": "system_content", "conversation_start_date": "2025-01-01"}
                    ],
                },
                FINAL,
            ]
        },
        "the recipe fixes the date",
    ),
    (
        native(FINAL, {"role": "developer", "content": [{"type": "developer_content"}]}, FINAL),
        "stands in the middle",
    ),
]


@pytest.mark.parametrize(("row", "reason"), BAD_NATIVE, ids=[reason for _, reason in BAD_NATIVE])
def test_a_bad_row_in_harmony_s_own_shape_is_refused(row, reason):
    with pytest.raises(DataError) as caught:
        read_row(row, "d.jsonl:5")
    assert reason in str(caught.value)


def test_functions_are_called_in_commentary_alone():
    developer = {
        "type": "developer_content",
        "tools": {"functions": {"name": "functions", "tools": [{"name": "f", "description": ""}]}},
    }
    call = {"role": "assistant", "channel": "analysis", "recipient": "functions.f", "content": "{}"}
    row = {
        "messages": [
            {"role": "developer", "content": [developer]},
            {"role": "user", "content": "x"},
            call,
        ]
    }
    with pytest.raises(DataError, match="calls of functions go to 'commentary'"):
        read_row(row, "row:1")
    call["channel"] = "commentary"
    read_row(row, "row:1")


@pytest.mark.parametrize("namespace", ["python", "browser"])
@pytest.mark.parametrize("content", ["print(1)", "{}"])
def test_a_namespace_cannot_have_the_name_of_a_built_in_tool(namespace, content):
    tools = {namespace: {"name": namespace, "tools": [{"name": "run", "description": "d"}]}}
    block = {"type": "developer_content", "tools": tools}
    call = {"role": "assistant", "channel": "commentary", "recipient": f"{namespace}.run"}
    messages = [
        {"role": "developer", "content": [block]},
        {"role": "user", "content": "x"},
        {**call, "content": content},
    ]
    with pytest.raises(DataError, match=f"tools.'{namespace}' has the name of a built-in tool"):
        read_row({"messages": messages}, "row:1")


@pytest.mark.parametrize("text", ["print(1)", "[1]", '{"a": NaN}', "[" * 100_000])
def test_the_last_step_refuses_arguments_that_its_reader_let_through(text):
    conversation = Conversation("row:1")
    conversation.namespaces["n"] = {"name": "n", "tools": [{"name": "run", "description": "d"}]}
    call = Header("assistant", recipient="n.run", channel="commentary")
    conversation.messages = [Message(Header("user"), "x"), Message(call, text)]
    with pytest.raises(DataError, match=r"row:1: the call of 'n\.run' is"):
        finish(conversation, complete=True)
