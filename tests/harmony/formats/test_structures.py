"""Every structure, token for token as openai-harmony renders the same conversation.

The expected side is built with the library's own classes and nothing of ours.
"""

import json

import numpy as np
import pytest
from openai_harmony import (
    Author,
    Conversation,
    DeveloperContent,
    Message,
    ReasoningEffort,
    RenderConversationConfig,
    Role,
    SystemContent,
    ToolDescription,
    ToolNamespaceConfig,
)

from gptoss_tune.harmony.formats.registry import read_row
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import END, RETURN

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.\nToday only.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                "days": {"type": ["integer", "null"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "where": {"oneOf": [{"type": "string"}, {"type": "number"}]},
            },
            "required": ["city"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "The time."}}


def system(effort=ReasoningEffort.MEDIUM, tools=()):
    content = SystemContent.new().with_conversation_start_date("2025-06-28")
    content = content.with_reasoning_effort(effort)
    for tool in tools:
        content = content.with_tools(tool)
    return Message.from_role_and_content(Role.SYSTEM, content)


def developer(instructions=None, tools=()):
    content = DeveloperContent.new()
    if instructions is not None:
        content = content.with_instructions(instructions)
    if tools:
        content = content.with_function_tools(
            [
                ToolDescription.new(
                    tool["function"]["name"],
                    tool["function"].get("description", ""),
                    tool["function"].get("parameters"),
                )
                for tool in tools
            ]
        )
    return Message.from_role_and_content(Role.DEVELOPER, content)


def user(text):
    return Message.from_role_and_content(Role.USER, text)


def says(channel, text):
    return Message.from_role_and_content(Role.ASSISTANT, text).with_channel(channel)


def calls(recipient, text, channel="commentary", content_type="<|constrain|>json"):
    return says(channel, text).with_recipient(recipient).with_content_type(content_type)


def result(name, text, channel="commentary"):
    message = Message.from_author_and_content(Author.new(Role.TOOL, name), text)
    return message.with_channel(channel).with_recipient("assistant")


def call(id_, name, arguments):
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": id_, "type": "function", "function": function}


PLAIN = [{"role": "user", "content": "Hi\n"}, {"role": "assistant", "content": " Hello! "}]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "größe": {"type": "number"}}}

STRUCTURES = {
    "plain": ({"messages": PLAIN}, [system(), user("Hi\n"), says("final", " Hello! ")]),
    "system prompt": (
        {"messages": [{"role": "system", "content": "Be brief."}, *PLAIN]},
        [system(), developer("Be brief."), user("Hi\n"), says("final", " Hello! ")],
    ),
    "developer prompt": (
        {"messages": [{"role": "developer", "content": "Be brief."}, *PLAIN]},
        [system(), developer("Be brief."), user("Hi\n"), says("final", " Hello! ")],
    ),
    "thinking": (
        {"messages": [PLAIN[0], {**PLAIN[1], "thinking": "A greeting."}]},
        [system(), user("Hi\n"), says("analysis", "A greeting."), says("final", " Hello! ")],
    ),
    "low effort": (
        {"messages": PLAIN, "reasoning_effort": "low"},
        [system(ReasoningEffort.LOW), user("Hi\n"), says("final", " Hello! ")],
    ),
    "high effort": (
        {"messages": PLAIN, "reasoning_effort": "High"},
        [system(ReasoningEffort.HIGH), user("Hi\n"), says("final", " Hello! ")],
    ),
    "named user": (
        {"messages": [{**PLAIN[0], "name": "ada"}, PLAIN[1]]},
        [
            system(),
            Message.from_author_and_content(Author.new(Role.USER, "ada"), "Hi\n"),
            says("final", " Hello! "),
        ],
    ),
    "multi-turn without thoughts": (
        {"messages": [*PLAIN, {"role": "user", "content": "Bye"}, PLAIN[1]]},
        [
            system(),
            user("Hi\n"),
            says("final", " Hello! "),
            user("Bye"),
            says("final", " Hello! "),
        ],
    ),
    "tool call at the end": (
        {
            "messages": [
                {"role": "user", "content": "Weather in Oslo?"},
                {"role": "assistant", "tool_calls": [call("1", "get_weather", {"city": "Oslo"})]},
            ],
            "tools": [WEATHER, NOW],
        },
        [
            system(),
            developer(tools=[WEATHER, NOW]),
            user("Weather in Oslo?"),
            calls("functions.get_weather", '{"city": "Oslo"}'),
        ],
    ),
    "thoughts, preamble, parallel calls and results": (
        {
            "messages": [
                {"role": "system", "content": "Use tools."},
                {"role": "user", "content": "Weather in Oslo and Rome?"},
                {
                    "role": "assistant",
                    "thinking": "Two calls.",
                    "content": "Looking it up.",
                    "tool_calls": [
                        call("a", "get_weather", {"city": "Oslo"}),
                        call("b", "get_weather", {"city": "Rom"}),
                    ],
                },
                {"role": "tool", "tool_call_id": "b", "content": "20"},
                {"role": "tool", "tool_call_id": "a", "content": "3"},
                {"role": "assistant", "thinking": "Both known.", "content": "3 and 20 degrees."},
            ],
            "tools": [WEATHER],
        },
        [
            system(),
            developer("Use tools.", [WEATHER]),
            user("Weather in Oslo and Rome?"),
            says("analysis", "Two calls."),
            says("commentary", "Looking it up."),
            calls("functions.get_weather", '{"city": "Oslo"}'),
            result("functions.get_weather", "3"),
            calls("functions.get_weather", '{"city": "Rom"}'),
            result("functions.get_weather", "20"),
            says("analysis", "Both known."),
            says("final", "3 and 20 degrees."),
        ],
    ),
    "browser and python": (
        {
            "builtin_tools": ["python", "browser"],
            "messages": [
                {"role": "user", "content": "2**100 and the news?"},
                {"role": "assistant", "tool_calls": [call("1", "python", {"code": "2**100"})]},
                {"role": "tool", "tool_call_id": "1", "content": "1267650600228229401496703205376"},
                {
                    "role": "assistant",
                    "tool_calls": [call("2", "browser.search", {"query": "news"})],
                },
                {"role": "tool", "tool_call_id": "2", "content": "[0] ..."},
                {"role": "assistant", "content": "Done."},
            ],
        },
        [
            system(tools=[ToolNamespaceConfig.browser(), ToolNamespaceConfig.python()]),
            user("2**100 and the news?"),
            calls("python", "2**100", "analysis", "code"),
            result("python", "1267650600228229401496703205376", "analysis"),
            calls("browser.search", '{"query": "news"}', "analysis", "code"),
            result("browser.search", "[0] ...", "analysis"),
            says("final", "Done."),
        ],
    ),
    "browser, python and functions": (
        {
            "tools": [{"type": "browser"}, {"type": "python"}, WEATHER],
            "messages": PLAIN,
        },
        [
            system(tools=[ToolNamespaceConfig.browser(), ToolNamespaceConfig.python()]),
            developer(tools=[WEATHER]),
            user("Hi\n"),
            says("final", " Hello! "),
        ],
    ),
}


FORMAT_TEXT = (
    "# Response Formats\n\n## person\n\n// A person.\n// Only one.\n"
    '{"type":"object","properties":{"name":{"type":"string"},"größe":{"type":"number"}}}'
)
FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "person", "description": "A person.\nOnly one.", "schema": SCHEMA},
}

# The library has no class for answer formats; the guide puts their text at the end.
STRUCTURES["structured output"] = (
    {
        "messages": [{"role": "system", "content": "Extract."}, *PLAIN],
        "response_format": FORMAT,
    },
    [system(), developer(f"Extract.\n\n{FORMAT_TEXT}"), user("Hi\n"), says("final", " Hello! ")],
)
STRUCTURES["structured output alone"] = (
    {"messages": PLAIN, "response_format": FORMAT},
    [
        system(),
        Message.from_role_and_content(Role.DEVELOPER, FORMAT_TEXT),
        user("Hi\n"),
        says("final", " Hello! "),
    ],
)


def library_ids(vocabulary, messages):
    """The library's rendering with nothing dropped; a final answer at the end is returned."""
    ids = vocabulary.encoding.render_conversation(
        Conversation.from_messages(messages), RenderConversationConfig(auto_drop_analysis=False)
    )
    if messages[-1].channel == "final":
        assert ids[-1] == END
        ids[-1] = RETURN
    return ids


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_is_rendered_as_the_library_renders_it(name, render, vocabulary):
    row, messages = STRUCTURES[name]
    examples = render(row)
    assert len(examples) == 1
    expected = library_ids(vocabulary, messages)
    got, want = vocabulary.decode(examples[0].input_ids.tolist()), vocabulary.decode(expected)
    assert got == want
    assert examples[0].input_ids.tolist() == expected
    assert examples[0].loss_weights.any()


@pytest.mark.parametrize("name", STRUCTURES)
def test_harmony_s_own_shape_of_a_structure_gives_the_same_tokens(name, render, vocabulary):
    row, messages = STRUCTURES[name]
    native = [message.to_dict() for message in messages]
    for block in native[0]["content"]:
        block.pop("conversation_start_date")
    native_row = {"messages": native}
    if name == "structured output alone":
        native_row = {"messages": [native[0], *native[2:]], "response_format": FORMAT}
    native_row = json.loads(json.dumps(native_row))
    (native_example,) = render(native_row)
    (example,) = render(row)
    assert native_example.input_ids.tolist() == example.input_ids.tolist()
    assert np.array_equal(native_example.loss_weights, example.loss_weights)


# The library writes "user:ada" and cannot read it again.
@pytest.mark.parametrize("name", [name for name in STRUCTURES if name != "named user"])
def test_what_is_rendered_parses_back_into_the_messages(name, render, vocabulary):
    _, messages = STRUCTURES[name]
    (example,) = render(STRUCTURES[name][0])
    parsed = vocabulary.encoding.parse_messages_from_completion_tokens(example.input_ids.tolist())
    assert len(parsed) == len(messages)
    for ours, theirs in zip(parsed, messages, strict=True):
        assert ours.author.role == theirs.author.role
        assert (ours.channel, ours.recipient) == (theirs.channel, theirs.recipient)


def test_an_answer_format_stands_after_the_tools(render, vocabulary):
    row = {**STRUCTURES["thoughts, preamble, parallel calls and results"][0]}
    (example,) = render({**row, "response_format": FORMAT})
    span = example.spans[1]
    text = vocabulary.decode(example.input_ids[span.body : span.end - 1].tolist())
    assert text.startswith("# Instructions\n\nUse tools.\n\n# Tools\n\n## functions\n\nnamespace ")
    assert text.endswith(f"}} // namespace functions\n\n{FORMAT_TEXT}")
    assert vocabulary.encode(text) == example.input_ids[span.body : span.end - 1].tolist()


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_the_recipe_s_effort_and_date_fill_what_the_row_leaves_open(effort, render, vocabulary):
    (example,) = render({"messages": PLAIN}, reasoning_effort=effort, date="2024-02-29")
    text = vocabulary.decode(example.input_ids.tolist())
    assert f"Reasoning: {effort}" in text
    assert "Current date: 2024-02-29" in text
    assert "Knowledge cutoff: 2024-06" in text
    assert text.startswith("<|start|>system<|message|>You are ChatGPT, a large language model")


def test_later_instructions_of_the_developer_are_a_message_as_in_the_library(render, vocabulary):
    row = {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "channel": "final", "content": "Hello"},
            {"role": "developer", "content": "Be rude."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "channel": "final", "content": "No."},
        ]
    }
    (example,) = render(row)
    before = [system(), user("Hi"), says("final", "Hello")]
    after = [developer("Be rude."), user("Hi"), says("final", "No.")]
    expected = library_ids(vocabulary, [*before, *after])
    assert example.input_ids.tolist() == expected


def test_a_prompt_is_what_the_library_renders_for_completion(vocabulary):
    row = STRUCTURES["thoughts, preamble, parallel calls and results"][0]
    messages = STRUCTURES["thoughts, preamble, parallel calls and results"][1]
    renderer = Renderer(vocabulary, RenderSettings())
    for kept in (5, 7):  # after the first and after the second result
        conversation = read_row(row, "row:1")
        conversation.messages = conversation.messages[:kept]
        expected = vocabulary.encoding.render_conversation_for_completion(
            Conversation.from_messages(messages[: kept + 2]), Role.ASSISTANT
        )
        assert renderer.render_prompt(conversation) == expected


def test_a_prompt_after_an_answer_has_lost_its_thoughts(vocabulary):
    row = {
        "messages": [
            {"role": "user", "content": "1?"},
            {"role": "assistant", "content": "one", "thinking": "first"},
            {"role": "user", "content": "2?"},
            {"role": "assistant", "content": "two"},
        ]
    }
    conversation = read_row(row, "row:1")
    conversation.messages = conversation.messages[:-1]
    expected = vocabulary.encoding.render_conversation_for_completion(
        Conversation.from_messages([system(), user("1?"), says("final", "one"), user("2?")]),
        Role.ASSISTANT,
    )
    assert Renderer(vocabulary, RenderSettings()).render_prompt(conversation) == expected
