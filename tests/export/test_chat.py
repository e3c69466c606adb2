"""chat on the tiny model and on recorded tokens."""

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios

import pytest
import torch
from openai_harmony import Conversation, Message, RenderConversationConfig, Role, StreamableParser
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.cli.model.chat import _typed
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


def test_an_answer_says_why_it_ended(base, monkeypatch):
    checkpoint = open_checkpoint(base)
    talk = ChatModel(checkpoint, ChatSettings(max_new_tokens=3, temperature=0.0))
    assert talk.ask("Hi", lambda *pair: None).ended == "length"
    before = len(talk._messages)

    def stop(prompt, streamer):
        streamer.put(torch.tensor([[1]]))
        streamer.put(torch.tensor([STOP_IDS[0]]))

    monkeypatch.setattr(talk, "_generate", stop)
    assert talk.ask("Hi", lambda *pair: None).ended == "stop"

    def ctrl_c(prompt, streamer):
        streamer.put(torch.tensor([[1]]))
        for token in said:
            streamer.put(torch.tensor([token]))
        raise KeyboardInterrupt

    monkeypatch.setattr(talk, "_generate", ctrl_c)
    said = load_vocabulary().encoding.encode(
        "<|channel|>final<|message|>Half an ans", allowed_special="all"
    )
    answer = talk.ask("Hi", lambda *pair: None)
    assert answer.ended == "interrupt" and answer.messages[0].content[0].text == "Half an ans"
    assert talk._messages[-1] is answer.messages[0]
    said, before = [], len(talk._messages)
    assert talk.ask("Hi", lambda *pair: None).messages == []
    assert len(talk._messages) == before, "a question without an answer is taken back"


def typed(*events):
    """What is yielded and shown for lines; a tuple is a paste, an exception is raised."""
    queue, shown = [], []
    for event in events:
        queue += (
            [(line, n > 0) for n, line in enumerate(event)]
            if type(event) is tuple
            else [(event, False)]
        )

    def read(prompt):
        if not queue:
            raise EOFError
        event, _ = queue.pop(0)
        if isinstance(event, BaseException):
            raise event
        return event

    lines = list(_typed(read, lambda: bool(queue) and queue[0][1], shown.append))
    return lines, "\n".join(shown)


def test_what_is_typed_in_a_terminal():
    lines, shown = typed("hello", "", ("two", "lines"), KeyboardInterrupt(), "again", "/help")
    assert lines == ["hello", "two\nlines", "again"]
    assert "/exit or Ctrl-D leaves" in shown.splitlines()[0] and "arrow keys" in shown


@pytest.mark.parametrize("word", ["/exit", "exit", " /quit ", "quit"])
def test_words_that_leave(word):
    assert typed("hello", word, "never") == (["hello"], "/exit or Ctrl-D leaves, /help lists more")


@pytest.mark.parametrize("text", ["exit the loop", "/etc/hosts is what?", "/exitnow"])
def test_words_that_do_not_leave(text):
    assert typed(text)[0] == [text]


@pytest.mark.parametrize("date", ["tomorrow", "2025-02-30", "20250628", "2025-6-28", ""])
def test_a_date_that_is_none(date):
    done = CliRunner().invoke(app, ["chat", "nowhere", "--date", date])
    assert done.exit_code == 2 and "YYYY-MM-DD" in done.output


def test_a_cut_answer_is_marked(merged):
    options = ["--prompt", "Hi", "--max-new-tokens", "2", "--temperature", "0"]
    done = CliRunner().invoke(app, ["chat", str(merged), *options])
    assert done.exit_code == 0 and "[cut after 2 tokens" in done.output


@pytest.mark.slow
def test_a_real_terminal(merged):
    """Arrow keys edit the line, a paste is one message, Ctrl-C at the prompt does not leave."""
    code = "from gptoss_tune.cli import main; main()"
    options = ["--max-new-tokens", "1", "--temperature", "0"]
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "chat", str(merged), *options],
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(side)
    seen = ""

    def until(text):
        nonlocal seen
        while text not in seen:
            assert select.select([main], [], [], 90)[0], seen
            seen += os.read(main, 4096).decode(errors="replace")
        seen = seen.partition(text)[2]

    try:
        until("> ")
        os.write(main, b"\x03")
        until("/exit or Ctrl-D leaves")
        until("> ")
        os.write(main, b"helo\x1b[Dl\n")
        until("[cut after 1 tokens")
        until("> ")
        os.write(main, b"\x1b[A")
        until("hello")
        os.write(main, b"\nsecond\n")
        until("[cut after")
        until("> ")
        os.write(main, b"/exit\n")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)


def test_commands(base, adapter, merged):
    run = CliRunner().invoke
    options = ["--max-new-tokens", "3", "--temperature", "0"]
    merged_says = run(app, ["chat", str(merged), "--prompt", "Hi", *options])
    assert merged_says.exit_code == 0, (merged_says.output, merged_says.exception)
    arguments = ["chat", str(adapter), "--base", str(base), *options]
    adapter_says = run(app, arguments, input="Hi\n")
    assert adapter_says.exit_code == 0, (adapter_says.output, adapter_says.exception)
    assert merged_says.output == adapter_says.output != ""
