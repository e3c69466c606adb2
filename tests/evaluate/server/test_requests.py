"""What a client may send, and what it gets, without a server."""

import pytest

from gptoss_tune.errors import MachineError
from gptoss_tune.evaluate.channels import Delta
from gptoss_tune.evaluate.generate import Sampling
from gptoss_tune.evaluate.server.completions import Completion
from gptoss_tune.evaluate.server.requests import BadRequest, read_request
from gptoss_tune.evaluate.server.settings import ServerSettings

USER = [{"role": "user", "content": "Hi"}]
USUAL = Sampling(4096, 0.7)


def read(**body):
    return read_request({"model": "mine", **body}, served="mine", usual=USUAL)


def test_what_a_request_leaves_open_is_the_servers():
    asked = read(messages=USER)
    assert asked.sampling == USUAL and asked.row == {"messages": USER}
    assert (asked.stop, asked.stream, asked.usage) == ((), False, False)


def test_settings_reach_the_answer():
    asked = read(
        messages=USER, temperature=0, top_p=0.5, seed=3, max_tokens=9, max_completion_tokens=7,
        stop="END", stream=True, stream_options={"include_usage": True}, reasoning_effort="high",
        tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="auto",
        user="me", metadata={"a": "b"}, store=False, presence_penalty=0, frequency_penalty=0.0,
        n=1, logit_bias={}, top_k=-1, keep_alive="5m",
    )  # fmt: skip
    assert asked.sampling == Sampling(7, 0.0, 0.5, 3)
    assert (asked.stop, asked.stream, asked.usage) == (("END",), True, True)
    assert asked.row["reasoning_effort"] == "high" and len(asked.row["tools"]) == 1
    assert read(messages=USER, reasoning={"effort": "low"}).row["reasoning_effort"] == "low"
    assert "tools" not in read(messages=USER, tools=[{}], tool_choice="none").row


def test_instructions_of_the_server_stand_where_a_request_has_none():
    body = {"messages": USER}
    asked = read_request(body, served="mine", usual=USUAL, instructions="Be brief.")
    assert asked.row["messages"][0] == {"role": "developer", "content": "Be brief."}
    own = [{"role": "system", "content": "Mine."}, *USER]
    asked = read_request({"messages": own}, served="mine", usual=USUAL, instructions="Be brief.")
    assert asked.row["messages"] == own


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "messages", "messages is None; expected a list of messages"),
        ({"messages": "Hi"}, "messages", "expected a list"),
        ({"messages": ["Hi"]}, "messages", "objects with role and content"),
        ({"messages": USER, "temperature": "hot"}, "temperature", "a number from 0"),
        ({"messages": USER, "temperature": True}, "temperature", "a number from 0"),
        ({"messages": USER, "top_p": 2}, "top_p", "from 0 to 1"),
        ({"messages": USER, "max_tokens": 0}, "max_tokens", "from 1 to 131,072"),
        ({"messages": USER, "n": 2}, "n", "expected 1"),
        ({"messages": USER, "stop": [1]}, "stop", "a text, or up to 16"),
        ({"messages": USER, "stream": "yes"}, "stream", "true or false"),
        ({"messages": USER, "logprobs": True}, "logprobs", "no effect here"),
        ({"messages": USER, "presence_penalty": 1}, "presence_penalty", "no effect here"),
        ({"messages": USER, "tool_choice": "required"}, "tool_choice", "no call can be forced"),
        ({"messages": USER, "reasoning_effort": "minimal"}, "reasoning_effort", "low, medium"),
        ({"messages": USER, "response_format": {"type": "json_object"}}, "response_format",
         "json_schema"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(body, param, words):
    with pytest.raises(BadRequest) as caught:
        read(**body)
    error = caught.value.body()["error"]
    assert (caught.value.status, error["param"]) == (400, param)
    assert words in error["message"] and error["type"] == "invalid_request_error"


def test_all_mistakes_are_in_one_message():
    with pytest.raises(BadRequest) as caught:
        read(messages=[], top_p=-1, seed="x")
    assert all(word in caught.value.message for word in ("messages", "top_p", "seed"))
    assert caught.value.param is None


def test_another_model_is_not_found():
    with pytest.raises(BadRequest, match="expected 'mine'") as caught:
        read_request({"model": "gpt-9"}, served="mine", usual=USUAL)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    with pytest.raises(BadRequest, match="the body is a list"):
        read_request([], served="mine", usual=USUAL)


def completed(*texts, stop=(), ended="stop", channel="final"):
    completion, streamed = Completion("mine", 5, stop), ""
    for text in texts:
        for delta in completion.take(Delta(channel, None, text, 0)):
            streamed += delta["content"]
    for delta in completion.end():
        streamed += delta["content"]
    whole = completion.whole(ended, 9)
    (choice,) = whole["choices"]
    assert streamed == choice["message"]["content"], "a stream says what the whole says"
    assert whole["usage"] == {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
    return streamed, choice["finish_reason"], completion.stopped


@pytest.mark.parametrize(
    ("texts", "stop", "expected"),
    [
        (("one END two",), ("END",), ("one ", "stop", True)),
        (("one E", "N", "D two"), ("END",), ("one ", "stop", True)),
        (("one E", "NE", " two"), ("END",), ("one ENE two", "length", False)),
        (("one EN",), ("END",), ("one EN", "length", False)),
        (("a b", " c"), ("c", "b"), ("a ", "stop", True)),
        (("aab",), ("ab",), ("a", "stop", True)),
    ],
)
def test_a_stop_text_ends_the_content_wherever_tokens_part(texts, stop, expected):
    assert completed(*texts, stop=stop, ended="length") == expected


def test_a_preamble_stands_apart_from_the_answer_and_lost_text_is_shown():
    completion = Completion("mine", 1)
    for number, (channel, text) in enumerate([("commentary", "Look."), ("final", "Done.")]):
        list(completion.take(Delta(channel, None, text, number)))
    assert completion.whole("stop", 1)["choices"][0]["message"]["content"] == "Look.\n\nDone."
    assert completed("odd", channel="not harmony")[0] == "odd"


def test_a_server_open_to_others_needs_a_key():
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.9"):
        assert ServerSettings.checked(host, 0, None, []).local
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(ValueError, match="expected an API key"):
            ServerSettings.checked(host, 0, "", [])
        assert not ServerSettings.checked(host, 0, "secret", []).local
    with pytest.raises(ValueError, match="without a path"):
        ServerSettings.checked("127.0.0.1", 0, None, ["http://localhost:3000/"])


def test_a_taken_port_says_what_to_do():
    with ServerSettings(port=0).bind() as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(MachineError, match=rf"port {port} .*choose another --port"):
            ServerSettings(port=port).bind()
