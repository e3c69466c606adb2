"""Ollama's template, rendered by the engine of Go that Ollama uses, has harmony's words."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptoss_tune.export.serve.laptop.ollama import template_text
from gptoss_tune.harmony.formats.prompt import read_prompt
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary

HERE = Path(__file__).parent

TOOL = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name"},
            "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["city"],
    },
}
CALL = {"function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
CONVERSATIONS = {
    "question": ([("user", "Hi <b> & you")], False),
    "instructions": ([("system", "Be brief."), ("user", "Hi")], False),
    "tools": ([("user", "Hi")], True),
    "instructions and tools": ([("system", "Be brief."), ("user", "Hi")], True),
    "turns": ([("user", "Hi"), ("assistant", "Yes?", "A thought."), ("user", "Go")], False),
    "call": ([("user", "Hi"), ("call", None, "A thought."), ("tool", "3 degrees")], True),
}


def as_row(said):
    """A conversation as a row of training data."""
    row = []
    for role, content, *thought in said:
        thinking = {"thinking": thought[0]} if thought else {}
        if role == "call":
            call = {"type": "function", "id": "c", **CALL}
            row.append({"role": "assistant", "content": None, "tool_calls": [call], **thinking})
        else:
            answers = {"tool_call_id": "c"} if role == "tool" else {}
            row.append({"role": role, "content": content, **thinking, **answers})
    return row


def as_values(said, tools):
    """The same as the values that Ollama gives a template."""
    system = "".join(content for role, content, *_ in said if role == "system")
    messages = []
    for role, content, *thought in said:
        message = {"Role": role, "Content": content or "", "Thinking": "".join(thought)}
        if role == "call":
            arguments = json.loads(CALL["function"]["arguments"])
            call = {"function": {"name": "get_weather", "arguments": arguments}}
            message |= {"Role": "assistant", "ToolCalls": [call]}
        if role != "system":
            messages.append(message)
    properties = {
        name: {
            "Type": [one["type"]],
            "Description": one.get("description", ""),
            "Enum": one.get("enum"),
        }
        for name, one in TOOL["parameters"]["properties"].items()
    }
    parameters = {"Required": TOOL["parameters"]["required"], "Properties": properties}
    tool = {"Name": TOOL["name"], "Description": TOOL["description"], "Parameters": parameters}
    return {"System": system, "Messages": messages, "Tools": [{"Function": tool}] if tools else []}


@pytest.fixture(scope="module")
def render(tmp_path_factory):
    """Render a template of Go by Go's own engine, which Ollama uses."""
    go = shutil.which("go", path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath]))
    if go is None:
        pytest.skip("Go is not installed; the extra dev brings it on Linux")
    folder = tmp_path_factory.mktemp("go")
    source, program = HERE / "render_template" / "main.go", folder / "render"
    cache = {**os.environ, "GOCACHE": str(folder / "cache"), "GOTOOLCHAIN": "local"}
    subprocess.run([go, "build", "-o", program, source], check=True, env=cache)
    template = folder / "template"
    template.write_text(template_text("low"))

    def run(values):
        asked = json.dumps(values)
        command = [program, template, "2025-06-28"]
        return subprocess.run(
            command, input=asked, capture_output=True, text=True, check=True
        ).stdout

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ollamas_template_renders_harmony(render, name):
    said, tools = CONVERSATIONS[name]
    row = {"messages": as_row(said), "reasoning_effort": "low"}
    if tools:
        row["tools"] = [{"type": "function", "function": TOOL}]
    vocabulary = load_vocabulary()
    renderer = Renderer(vocabulary, RenderSettings("low", "2025-06-28"))
    expected = vocabulary.decode(renderer.render_prompt(read_prompt(row, "row")))
    assert render(as_values(said, tools)) == expected
    high = render({**as_values(said, tools), "ThinkLevel": "high"})
    assert high == expected.replace("Reasoning: low", "Reasoning: high")
