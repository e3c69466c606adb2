"""chat on the tiny model and on recorded tokens."""

import re
import signal
import subprocess
import sys

import openai
import pytest
import torch
from openai_harmony import Conversation, Message, RenderConversationConfig, Role
from typer.testing import CliRunner

from gptoss_tune.chat.server import open_served
from gptoss_tune.chat.talk import Talk
from gptoss_tune.cli import app
from gptoss_tune.evaluate.channels import RAW, ChannelReader
from gptoss_tune.evaluate.conversation import open_answerer
from gptoss_tune.evaluate.generate import Sampling
from gptoss_tune.evaluate.load import open_evaluated_model
from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.evaluate.trained_as import TrainedAs, answering_section
from gptoss_tune.harmony.vocabulary import load_vocabulary


@pytest.fixture(scope="module")
def encoding():
    return load_vocabulary().encoding


def answer_tokens(encoding, *messages):
    """The tokens a trained model would generate after <|start|>assistant."""
    keep = RenderConversationConfig(auto_drop_analysis=False)
    tokens = encoding.render_conversation(Conversation.from_messages(messages), keep)
    assert encoding.decode(tokens[:2]) == "<|start|>assistant"
    return tokens[2:]


def read(encoding, tokens):
    reader = ChannelReader(encoding)
    shown = [delta for token in tokens for delta in reader.take(token)]
    shown += reader.end()
    joined = {}
    for delta in shown:
        joined[delta.label] = joined.get(delta.label, "") + delta.text
    return joined, reader


def test_channels_are_told_apart_as_tokens_arrive(encoding):
    assistant = Message.from_role_and_content
    tokens = answer_tokens(
        encoding,
        assistant(Role.ASSISTANT, "Let me think, 🙂 né.").with_channel("analysis"),
        assistant(Role.ASSISTANT, "It is four.").with_channel("final"),
    )
    shown, reader = read(encoding, [*tokens[:-1], STOP_IDS[0]])
    assert shown == {"analysis": "Let me think, 🙂 né.", "final": "It is four."}
    assert [m.header.channel for m in reader.messages()] == ["analysis", "final"]
    assert reader.ended() == "stop" and reader.tokens == len(tokens)


def test_a_tool_call_names_its_recipient(encoding):
    call = Message.from_role_and_content(Role.ASSISTANT, '{"city": "Rome"}')
    call = call.with_channel("commentary").with_recipient("functions.weather")
    tokens = answer_tokens(encoding, call.with_content_type("json"))
    shown, reader = read(encoding, tokens)
    assert shown == {"commentary to functions.weather": '{"city": "Rome"}'}
    assert reader.ended() == "call"
    (said,) = reader.messages()
    assert said.is_call and said.header.recipient == "functions.weather"


def test_an_answer_cut_by_the_limit_keeps_what_was_said(encoding):
    tokens = answer_tokens(
        encoding,
        Message.from_role_and_content(Role.ASSISTANT, "one two three").with_channel("final"),
    )
    shown, reader = read(encoding, tokens[:-2])
    assert shown["final"] == "one two"
    assert reader.messages()[0].text == "one two" and reader.ended() == "length"


def test_text_that_is_no_harmony_is_shown_as_such(encoding):
    tokens = [200007, 200007, *encoding.encode("lost words 🙂"), STOP_IDS[0]]
    shown, reader = read(encoding, tokens)
    assert "lost words 🙂" in shown[RAW]
    assert reader.messages() == []


def test_what_no_server_renders_is_not_kept(encoding):
    text = (
        "<|channel|>secret<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b"
        "<|end|><|start|>user<|message|>c<|end|>"
    )
    _, reader = read(encoding, encoding.encode(text, allowed_special="all"))
    assert [(m.header.channel, m.text) for m in reader.messages()] == [("final", "b")]


def test_the_tiny_model_answers_and_greedy_answers_repeat(base, adapter):
    def answer(name):
        subject = open_evaluated_model(str(name), base=None if name == base else str(base))
        section = answering_section(subject)
        answerer = open_answerer(subject, TrainedAs(), section, torch.device("cpu"))
        talk, shown = Talk(answerer, Sampling(4, 0.0), "Be brief."), []
        talk.ask("Hi", shown.append)
        return shown

    first = answer(base)
    assert first and first == answer(base)
    assert answer(adapter) != first


@pytest.mark.parametrize("date", ["tomorrow", "2025-02-30", "20250628", "2025-6-28", ""])
def test_a_date_that_is_none(date):
    done = CliRunner().invoke(app, ["chat", "nowhere", "--date", date])
    assert done.exit_code == 2 and "YYYY-MM-DD" in done.output


def test_a_cut_answer_is_marked(merged):
    options = ["--prompt", "Hi", "--max-new-tokens", "2", "--temperature", "0"]
    done = CliRunner().invoke(app, ["chat", str(merged), *options])
    assert done.exit_code == 0 and "[cut after 2 tokens" in done.output


@pytest.mark.slow
def test_a_served_model_until_ctrl_c(merged):
    """The command prints where it listens; Ctrl-C ends it, an answer on its way included."""
    code = "from gptoss_tune.cli import main; main()"
    arguments = ["chat", str(merged), "--serve", "--port", "0", "--temperature", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        first = process.stdout.readline()
        address = re.search(r"at http://127\.0\.0\.1:(\d+)/v1 until Ctrl-C", first)
        assert address, first + process.stderr.read()
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{address[1]}/v1", api_key="any", max_retries=0
        )
        model = client.models.list().data[0].id
        served = open_served(f"http://127.0.0.1:{address[1]}", None, None)
        talk = Talk(served, Sampling(4, 0.0))
        answer = talk.ask("Hi", lambda delta: None)
        assert answer.ended == "length" and answer.stream.usage["completion_tokens"] == 4
        assert (served.name, served.context) == (model, 131_072)
        ask = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        next(iter(client.chat.completions.create(**ask, max_tokens=5000)))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0 and out.endswith("stopped\n"), err
        assert "Traceback" not in err and "reasoning effort medium, the usual one" in err
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--serve", "--host", "0.0.0.0"], "API key"),
        (["--serve", "--allow-origin", "localhost:3000"], "such as http://localhost:3000"),
        (["--allow-origin", "http://localhost:3000"], "needs --serve"),
        (["--serve", "--prompt", "Hi"], "asked by its clients"),
        (["--device", "gpu"], "expected cpu, cuda"),
        (["--effort", "utmost"], "low"),
    ],
)
def test_options_that_cannot_be_served_are_refused_before_anything_is_opened(options, words):
    done = CliRunner().invoke(app, ["chat", "nowhere", *options], env={"GPTOSS_TUNE_API_KEY": ""})
    said = " ".join((done.output + str(done.exception)).replace("│", " ").split())
    assert done.exit_code and words in said


def test_commands(base, adapter, merged):
    run = CliRunner().invoke
    options = ["--max-new-tokens", "3", "--temperature", "0"]
    merged_says = run(app, ["chat", str(merged), "--prompt", "Hi", *options])
    assert merged_says.exit_code == 0, (merged_says.output, merged_says.exception)
    arguments = ["chat", str(adapter), "--base", str(base), *options]
    adapter_says = run(app, arguments, input="Hi\n")
    assert adapter_says.exit_code == 0, (adapter_says.output, adapter_says.exception)
    assert merged_says.stdout == adapter_says.stdout != ""
    assert "experts MXFP4, adapter" in adapter_says.stderr
    assert "experts bf16)" in merged_says.stderr
