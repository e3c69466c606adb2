"""The context of every trained turn of the shipped data is the prompt that a server would send.

The server's side is the chat template of our checkpoints, rendered as transformers renders it, and
tokenised as one text: harmless there, because the shipped conversations spell no special token.
"""

import json

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptoss_tune.harmony.formats.openai_chat import read_chat
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import NAMED_SPECIAL_TOKENS
from gptoss_tune.shipped import shipped

KINDS = ("reasoning", "multi_turn", "tools", "code", "eval")


@pytest.fixture(scope="module")
def template():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    source = (shipped("data") / "tiny_checkpoint" / "chat_template.jinja").read_text("utf-8")
    return environment.from_string(source)


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_is_trained_after_the_prompt_it_is_served(kind, template, vocabulary):
    renderer = Renderer(vocabulary, RenderSettings())
    compared = 0
    lines = (shipped("data") / "conversations" / f"{kind}.jsonl").read_text("utf-8").splitlines()
    for number, row in enumerate(map(json.loads, lines), start=1):
        examples = renderer.render(read_chat(row, f"{kind}.jsonl:{number}"))
        messages = row["messages"]
        for index in range(1, len(messages)):
            before = messages[:index]
            if (messages[index]["role"], messages[index - 1]["role"]) != ("assistant", "user"):
                continue
            if any(len(message.get("tool_calls") or ()) > 1 for message in before):
                continue  # the template lays parallel calls side by side
            served = template.render(
                messages=before,
                tools=row.get("tools"),
                reasoning_effort=row.get("reasoning_effort"),
                conversation_start_date="2025-06-28",
                add_generation_prompt=True,
            )
            prompt = renderer.render_prompt(
                read_chat({**row, "messages": before}, f"{kind}.jsonl:{number}", complete=False)
            )
            assert vocabulary.decode(prompt) == served
            ids = vocabulary.encoding.encode(served, allowed_special=set(NAMED_SPECIAL_TOKENS))
            assert prompt == ids
            starting = [e for e in examples if e.input_ids[: len(prompt)].tolist() == prompt]
            assert starting, f"{kind}.jsonl:{number}, before message {index}"
            assert any(e.loss_weights[len(prompt)] > 0 for e in starting)
            compared += 1
    assert compared >= 20
