"""chat on the tiny model and on recorded tokens."""

import pytest
import torch
from openai_harmony import Conversation, Message, RenderConversationConfig, Role, StreamableParser
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.evaluate.chat import RAW, ChannelStreamer, ChatModel, ChatSettings
from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.weights import open_checkpoint


@pytest.fixture(scope="module")
def encoding():
    return load_vocabulary().encoding


def answer_tokens(encoding, *messages):
    """The tokens a trained model would generate after <|start|>assistant."""
    keep = RenderConversationConfig(auto_drop_analysis=False)
    tokens = encoding.render_conversation(Conversation.from_messages(messages), keep)
    assert encoding.decode(tokens[:2]) == "<|start|>assistant"
    return tokens[2:]


def stream(encoding, tokens):
    shown = []
    streamer = ChannelStreamer(
        StreamableParser(encoding, Role.ASSISTANT),
        lambda channel, text: shown.append((channel, text)),
        encoding.decode,
    )
    streamer.put(torch.tensor([[1, 2, 3]]))  # the prompt, which is not shown
    for token in tokens:
        streamer.put(torch.tensor([token]))
    streamer.end()
    joined = {}
    for channel, text in shown:
        joined[channel] = joined.get(channel, "") + text
    return joined, streamer.messages()


def test_channels_are_told_apart_as_tokens_arrive(encoding):
    assistant = Message.from_role_and_content
    tokens = answer_tokens(
        encoding,
        assistant(Role.ASSISTANT, "Let me think, 🙂 né.").with_channel("analysis"),
        assistant(Role.ASSISTANT, "It is four.").with_channel("final"),
    )
    shown, messages = stream(encoding, [*tokens[:-1], STOP_IDS[0]])
    assert shown == {"analysis": "Let me think, 🙂 né.", "final": "It is four."}
    assert [m.channel for m in messages] == ["analysis", "final"]


def test_a_tool_call_names_its_recipient(encoding):
    call = Message.from_role_and_content(Role.ASSISTANT, '{"city": "Rome"}')
    call = call.with_channel("commentary").with_recipient("functions.weather")
    tokens = answer_tokens(encoding, call.with_content_type("json"))
    shown, _ = stream(encoding, tokens)
    assert shown == {"commentary to functions.weather": '{"city": "Rome"}'}


def test_an_answer_cut_by_the_limit_keeps_what_was_said(encoding):
    tokens = answer_tokens(
        encoding,
        Message.from_role_and_content(Role.ASSISTANT, "one two three").with_channel("final"),
    )
    shown, messages = stream(encoding, tokens[:-2])
    assert shown["final"] == "one two"
    assert messages[0].content[0].text == "one two"


def test_text_that_is_no_harmony_is_shown_as_such(encoding):
    tokens = [200007, 200007, *encoding.encode("lost words")]
    shown, _ = stream(encoding, tokens)
    assert "lost words" in shown[RAW]


def test_the_tiny_model_answers_and_greedy_answers_repeat(base, adapter, lab):
    checkpoint = open_checkpoint(base)
    settings = ChatSettings(max_new_tokens=4, temperature=0.0, instructions="Be brief.")

    def answer(*adapters):
        shown = []
        ChatModel(checkpoint, settings, *adapters).ask("Hi", lambda *pair: shown.append(pair))
        return shown

    first = answer()
    assert first and first == answer()
    _, opened = lab.open(base, adapter)
    assert answer(opened[0].adapter) != first


def test_commands(base, adapter, merged):
    run = CliRunner().invoke
    options = ["--max-new-tokens", "3", "--temperature", "0"]
    merged_says = run(app, ["chat", str(merged), "--prompt", "Hi", *options])
    assert merged_says.exit_code == 0, (merged_says.output, merged_says.exception)
    arguments = ["chat", str(adapter), "--base", str(base), *options]
    adapter_says = run(app, arguments, input="Hi\n")
    assert adapter_says.exit_code == 0, (adapter_says.output, adapter_says.exception)
    assert merged_says.output == adapter_says.output != ""
