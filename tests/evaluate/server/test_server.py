"""The server on loopback, asked by OpenAI's own client, on the model that the other tests share."""

import http.client
import json
import threading
import time

import openai
import pytest

from gptoss_tune.chat.talk import Talk
from gptoss_tune.evaluate.generate import Sampling
from gptoss_tune.evaluate.server.app import served_name
from gptoss_tune.evaluate.server.serve import ModelServer, welcome
from gptoss_tune.evaluate.server.settings import ServerSettings

USER = [{"role": "user", "content": "2 + 2?"}]
THOUGHT, SAID = "Two and two.", "It is 4 🙂."
ANSWER = (
    f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    f"<|start|>assistant<|channel|>final<|message|>{SAID}<|return|>"
)
CALL = (
    "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}<|call|>'
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Running:
    """A server in a thread, and the ways to ask it."""

    def __init__(self, answerer, **settings):
        settings = ServerSettings(port=0, **settings)
        self.bound = settings.bind()
        self.name = served_name(answerer.name)
        self.text = welcome(self.name, settings, self.bound)
        self.port = self.bound.getsockname()[1]
        self.server = ModelServer(answerer, Sampling(64, 0.0), settings)
        self.thread = threading.Thread(target=self.server.run, args=([self.bound],), daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def client(self, key="any"):
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)

    def ask(self, messages=USER, key="any", **settings):
        # Not closed: a stream is read after this returns.
        client = self.client(key)
        return client.chat.completions.create(model=self.name, messages=messages, **settings)

    def raw(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def stop(self):
        self.server.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture(scope="session")
def server(answerer):
    running = Running(answerer)
    yield running
    running.stop()


def test_an_answer_whole_and_streamed(server, by_heart):
    by_heart(ANSWER)
    whole = server.ask()
    (choice,) = whole.choices
    assert choice.message.content == SAID and choice.finish_reason == "stop"
    assert choice.message.reasoning_content == choice.message.reasoning == THOUGHT
    assert choice.message.tool_calls is None and whole.model == server.name
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    by_heart(ANSWER)
    chunks = list(server.ask(stream=True, stream_options={"include_usage": True}))
    *said, last = chunks
    deltas = [chunk.choices[0].delta for chunk in said]
    assert deltas[0].role == "assistant"
    assert "".join(d.content or "" for d in deltas) == SAID
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == THOUGHT
    assert sum(bool(d.content) for d in deltas) > 2, "as tokens come, not at once"
    assert [c.choices[0].finish_reason for c in said if c.choices[0].finish_reason] == ["stop"]
    assert last.choices == [] and last.usage == whole.usage


def test_a_call_of_a_tool_and_its_result(server, answerer, by_heart):
    by_heart(CALL)
    choice = server.ask(tools=[WEATHER]).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "weather",
        {"city": "Rome"},
    )
    by_heart(CALL)
    chunks = list(server.ask(tools=[WEATHER], stream=True))
    parts = [p for c in chunks for p in c.choices[0].delta.tool_calls or []]
    assert parts[0].function.name == "weather" and parts[0].id
    assert "".join(p.function.arguments for p in parts) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    # What came goes back as it is, the thoughts with it, and the result after it.
    by_heart(ANSWER)
    history = [
        *USER,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    assert server.ask(history, tools=[WEATHER]).choices[0].message.content == SAID


def test_greedy_answers_are_those_of_the_terminal(server, answerer):
    said = []
    Talk(answerer, Sampling(6, 0.0)).ask("2 + 2?", lambda delta: said.append(delta.text))
    answer = server.ask(max_tokens=6)
    assert answer.choices[0].message.content == "".join(said) != ""
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 6
    drawn = [server.ask(max_tokens=4, temperature=1, seed=n) for n in (1, 1, 2)]
    texts = [one.choices[0].message.content for one in drawn]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_text_ends_the_model_too(server, by_heart):
    by_heart("<|channel|>final<|message|>one two three four five six seven eight nine ten")
    answer = server.ask(stop=["three"], max_tokens=60)
    assert answer.choices[0].message.content == "one two "
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens < 12


def test_models_and_health(server):
    with server.client() as client:
        (model,) = client.models.list().data
        assert model.id == server.name and client.models.retrieve(model.id).id == model.id
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")
    assert server.raw("GET", "/health")[:2] == (200, b'{"status":"ok"}')
    assert f"http://127.0.0.1:{server.port}/v1" in server.text and "curl" in server.text


def test_bad_requests_are_said_as_openai_says_them(server):
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\].*role") as caught:
        server.ask([{"role": "sister", "content": "Hi"}])
    assert caught.value.body["param"] == "messages"
    with pytest.raises(openai.BadRequestError, match="image_url"):
        server.ask([{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:"}}]}])  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="presence_penalty"):
        server.ask(presence_penalty=1)
    with pytest.raises(openai.BadRequestError, match="shorten the conversation") as caught:
        server.ask(max_tokens=131_072)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match="is not served here"), server.client() as client:
        client.chat.completions.create(model="gpt-9", messages=USER)
    for method, path, status in (
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
    ):
        got, body, _ = server.raw(method, path)
        assert got == status and "POST /v1/chat/completions" in json.loads(body)["error"]["message"]
    for body in (b"{", b"[]", b'{"messages": NaN}', b"\xff"):
        status, answer, _ = server.raw("POST", "/v1/chat/completions", body)
        assert status == 400 and json.loads(answer)["error"]["type"] == "invalid_request_error"


def test_a_client_that_leaves_ends_its_answer_and_the_next_is_served(server, by_heart):
    by_heart("<|channel|>final<|message|>" + "word " * 5000)
    first = server.ask(stream=True, max_tokens=5000)
    next(iter(first))
    waiting = []
    second = threading.Thread(target=lambda: waiting.append(server.ask(max_tokens=2)))
    second.start()
    time.sleep(0.3)
    assert not waiting, "one answer at a time"
    first.close()
    second.join(30)
    assert waiting[0].usage.completion_tokens == 2


def test_names_and_pages_that_are_not_allowed(server):
    ask = json.dumps({"messages": USER, "max_tokens": 1})
    for host in ("evil.example", f"evil.example:{server.port}", "", "127.0.0.1.evil.example"):
        status, body, _ = server.raw("POST", "/v1/chat/completions", ask, Host=host)
        assert status == 403 or (host == "" and status == 400), host
    for host in ("localhost", f"localhost:{server.port}", f"[::1]:{server.port}"):
        assert server.raw("GET", "/v1/models", Host=host)[0] == 200
    for origin in ("https://evil.example", "null", "http://localhost:3000"):
        status, body, headers = server.raw("POST", "/v1/chat/completions", ask, Origin=origin)
        assert status == 403 and b"--allow-origin" in body
        assert "access-control-allow-origin" not in headers
    own = f"http://127.0.0.1:{server.port}"
    assert server.raw("GET", "/v1/models", Origin=own)[0] == 200


def test_a_key_and_an_allowed_page(answerer):
    running = Running(answerer, api_key="s3cret", origins=("http://localhost:3000",))
    try:
        with pytest.raises(openai.AuthenticationError, match="Bearer KEY"):
            running.ask(max_tokens=1)
        assert running.ask(max_tokens=1, key="s3cret").usage.completion_tokens == 1
        assert running.raw("GET", "/health")[0] == 200
        assert "s3cret" not in running.text and "GPTOSS_TUNE_API_KEY" in running.text
        origin = "http://localhost:3000"
        status, _, headers = running.raw(
            "OPTIONS", "/v1/chat/completions", Origin=origin,
            Access_Control_Request_Method="POST",
            Access_Control_Request_Headers="authorization,content-type",
        )  # fmt: skip
        assert status == 200 and headers["access-control-allow-origin"] == origin
        status, _, headers = running.raw("GET", "/v1/models", Origin=origin)
        assert status == 401 and headers["access-control-allow-origin"] == origin
        assert running.raw("GET", "/v1/models", Origin="http://localhost:4000",
                           Authorization="Bearer s3cret")[0] == 403  # fmt: skip
    finally:
        running.stop()


def test_stopping_ends_an_answer_that_is_on_its_way(answerer, by_heart):
    running = Running(answerer)
    by_heart("<|channel|>final<|message|>" + "word " * 5000)
    chunks = iter(running.ask(stream=True, max_tokens=5000))
    while "word" not in (next(chunks).choices[0].delta.content or ""):
        pass
    began = time.monotonic()
    running.stop()
    assert time.monotonic() - began < 10
    *_, last = chunks
    assert last.choices[0].finish_reason == "stop", "what was said arrives whole"
