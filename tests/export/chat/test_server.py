"""A conversation with a server: what it is asked, what it may answer, and how it may fail."""

import json
import socket
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from gptoss_tune.chat.events import OddEvent, ServedReader, read_events
from gptoss_tune.chat.server import open_served
from gptoss_tune.chat.talk import Talk
from gptoss_tune.chat.tokens import describe_tokens
from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError, DataError, MachineError
from gptoss_tune.evaluate.answering.sampling import Sampling


@pytest.fixture
def talk(stand_in):
    return Talk(open_served(stand_in.url, None, None), Sampling(40, 0.0, seed=3), "Be brief.")


def asked(talk, text):
    shown = []
    answer = talk.ask(text, shown.append)
    joined = {}
    for delta in shown:
        joined[delta.label] = joined.get(delta.label, "") + delta.text
    return answer, joined


def test_a_conversation_is_asked_whole_and_comes_back_by_channel(talk, stand_in):
    answer, shown = asked(talk, "Hi")
    assert shown == {"analysis": "Thinking of it.", "final": "You said: Hi"}
    assert answer.ended == "stop"
    talk.effort = "high"
    asked(talk, "Again")
    first, second = stand_in.asked
    assert first["messages"] == [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    assert "reasoning_effort" not in first, "the server's own, unless one is asked for"
    said = second["messages"][2]
    assert said["content"] == "You said: Hi" and said["reasoning_content"] == "Thinking of it."
    assert second["reasoning_effort"] == "high"
    wanted = {"model": "tuned", "stream": True, "max_tokens": 40, "temperature": 0.0, "seed": 3}
    assert second.items() >= wanted.items()


def test_a_field_without_effect_that_a_server_refuses_is_left_out(talk, stand_in):
    stand_in.refused = "stream_options"
    assert asked(talk, "Hi")[1]["final"] == "You said: Hi"
    assert "stream_options" not in stand_in.asked[0]
    stand_in.refused = "seed"
    with pytest.raises(MachineError, match="unknown field seed"):
        asked(talk, "Hi")
    assert len(talk.turns) == 1, "a question without an answer is taken back"


def test_a_call_of_a_tool_is_shown_and_kept(talk, stand_in):
    answer, shown = asked(talk, "tool")
    assert shown["commentary to functions.weather"] == '{"city": "Rome"}'
    assert answer.ended == "call"
    asked(talk, "So?")
    (call,) = stand_in.asked[1]["messages"][2]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}


def test_a_server_that_answers_whole_or_says_it_is_cut(talk):
    assert asked(talk, "whole")[1] == {"analysis": "no stream", "final": "in one"}
    assert asked(talk, "long")[0].ended == "length"
    with pytest.raises(DataError, match="cannot continue an answer"):
        talk.go_on(print)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("refuse", 'HTTP 400, it says: "the answer is'),
        ("break", 'it says: "the engine died"'),
        ("drop", "the connection ended in the middle of the answer"),
        ("page", "its type is text/html, it begins with '<!doctype html>'"),
        ("garbage", "a part of the answer is no JSON"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_the_conversation_goes_on(talk, message, words):
    with pytest.raises(MachineError) as caught:
        asked(talk, message)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert talk.said == [] and asked(talk, "Hi")[0].ended == "stop"


def test_stopping_closes_the_connection(talk, stand_in):
    def ctrl_c(delta):
        seen.append(delta.text)
        if len(seen) == 4:
            raise KeyboardInterrupt

    seen = []
    answer = talk.ask("slow", ctrl_c)
    assert answer.ended == "interrupt" and answer.messages[-1].text == "word0 word1 "
    assert stand_in.left.wait(20), "the server computes on"
    stand_in.left.clear()
    stop = threading.Event()
    seen.clear()
    answer = talk.ask(
        "slow", lambda delta: (seen.append(1), len(seen) > 5 and stop.set()), stop.is_set
    )
    assert answer.ended == "interrupt" and stand_in.left.wait(20)


def test_a_server_that_is_still_loading_is_waited_for_and_it_is_said(stand_in):
    said = []
    talk = Talk(open_served(stand_in.url, None, None, said.append))
    stand_in.busy = 2
    assert asked(talk, "Hi")[0].ended == "stop"
    assert said == [
        "waiting: the server answers HTTP 503; it is asked again every 0 s, for up to 10 minutes; "
        "Ctrl-C gives up"
    ]


def test_an_answer_whose_end_has_no_reason_is_whole(talk):
    answer, shown = asked(talk, "unsaid")
    assert answer.ended == "stop" and shown["final"] == "all of it"


def test_an_answer_that_the_server_ended_is_no_whole_one_and_a_refusal_is_shown(talk, stand_in):
    answer, _ = asked(talk, "filtered")
    assert answer.ended == "other" and answer.stream.reason == "content_filter"
    _, shown = asked(talk, "declined")
    assert shown["refusal"] == "I will not."
    asked(talk, "So?")
    assert stand_in.asked[-1]["messages"][-2]["content"] == "I will not."


def test_one_of_several_models_has_to_be_named(stand_in):
    stand_in.models = [{"id": "base"}, {"id": "tuned\x1b[2J"}]
    with pytest.raises(MachineError, match=r"serves base, tuned\\x1b\[2J; name .*--served-name"):
        open_served(stand_in.url, None, None)
    with pytest.raises(MachineError, match="expected 'other' among them"):
        open_served(stand_in.url, "other", None)
    assert open_served(f"{stand_in.url}/v1/", "base", None).context is None
    with pytest.raises(CheckpointError, match="expected the address of a server"):
        open_served("http://", None, None)


def test_tokens_are_the_servers_or_counted_here_and_said_to_be(talk, stand_in):
    asked(talk, "Hi")
    whole, last, parts = describe_tokens(talk)
    assert "100 tokens (the server's count), of 4,096" in whole and "3,956 remain" in whole
    assert "30 tokens (the server's count; by channel counted here" in last and "10 below" in last
    assert parts.split() == ["analysis", "4,", "final", "4"]
    stand_in.counts = False
    asked(talk, "Hi")
    whole, last, _ = describe_tokens(talk)
    assert "counted here with gpt-oss's vocabulary" in whole and "8 tokens (text alone" in last


@pytest.mark.parametrize(
    "event",
    [
        [],
        {"choices": {}},
        {"choices": ["no"]},
        {"choices": [{"delta": "text"}]},
        {"choices": [{"delta": {"content": 3}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{}"}}]}}]},
        {"choices": [{"delta": {"tool_calls": 1}}]},
        {"error": "gone"},
    ],
)
def test_events_of_another_shape(event):
    with pytest.raises(OddEvent):
        list(ServedReader().take(event))


def test_lines_of_a_stream_and_of_a_whole_answer():
    stream = [
        b": ping\n",
        b"\n",
        b"event: x\r\n",
        b'data: {"a": 1}\r\n',
        b"data: [DONE]\n",
        b"data: 2\n",
    ]
    assert list(read_events(stream)) == [{"a": 1}]
    assert list(read_events([b'{"a":\n', b" 2}\n"])) == [{"a": 2}]
    with pytest.raises(ValueError, match="Expecting property name"):
        list(read_events([b"data: {\n"]))


def test_the_command_with_a_key_and_no_torch(stand_in):
    code = (
        "import sys; from gptoss_tune.cli import app; app(standalone_mode=False); "
        "print('torch' in sys.modules)"
    )
    options = ["--api-key-env", "MINE", "--effort", "low", "--prompt", "Hi", "--prompt", "More"]
    done = subprocess.run(
        [sys.executable, "-c", code, "chat", stand_in.url, *options],
        capture_output=True,
        text=True,
        env={"PATH": "", "MINE": "secret-key", "PYTHONPATH": ":".join(sys.path)},
        timeout=120,
        check=True,
    )
    assert done.stdout == (
        "[analysis] Thinking of it.\n[final] You said: Hi\n"
        "[analysis] Thinking of it.\n[final] You said: More\nFalse\n"
    )
    assert done.stderr.startswith(
        f"tuned at {stand_in.url}: context 4,096 tokens; reasoning effort"
    )
    assert stand_in.keys == ["Bearer secret-key"] * 2
    assert stand_in.asked[0]["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--base", "b", "--dtype", "float32", "--date", "2025-01-01"], "--base, --dtype, --date:"),
        (["--device", "cpu"], "a server has loaded its model"),
        (["--serve"], "is served already"),
        (["--port", "9"], "needs --serve"),
        (["--api-key-env", "NOT_SET"], "no variable NOT_SET"),
    ],
)
def test_options_that_a_server_cannot_honour_are_refused(stand_in, options, words):
    done = CliRunner().invoke(app, ["chat", stand_in.url, *options])
    assert done.exit_code == 2
    assert words in " ".join(done.output.replace("│", " ").split())
    assert not stand_in.asked


def test_options_of_a_server_and_of_a_gguf_are_refused_for_a_folder():
    options = ["--served-name", "x", "--api-key-env", "Y", "--context", "512"]
    done = CliRunner().invoke(app, ["chat", "nowhere", *options])
    said = " ".join(done.output.replace("│", " ").split())
    assert done.exit_code == 2 and "--served-name, --api-key-env: is for the URL" in said
    assert "--context: is for a GGUF" in said


def test_an_answer_in_a_pipe_cannot_write_to_the_terminal(stand_in):
    done = CliRunner().invoke(app, ["chat", stand_in.url], input="escapes\n/exit\n")
    assert done.exit_code == 0 and "北京" in done.stdout
    assert not set("\x1b\x07\u202e") & set(done.stdout)
    assert json.dumps(stand_in.asked[1]["messages"][-1]) == '{"role": "user", "content": "/exit"}'


def test_a_closed_port_is_called_by_its_cause_alone():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(MachineError, match=r"gave no list of models \(Connection refused\)"):
        open_served(url, None, None)
