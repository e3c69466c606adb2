"""What servers answer, and how it ends: one sentence with what the server said."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.export.verify.completions import CompletionsServer

KEY = "server-key-0123456789"


class Server:
    """Answers each request with the next of ``answers``, the last one again and again."""

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_POST(self):
                length = int(self.headers["content-length"])
                outer.requests.append((self.path, dict(self.headers), self.rfile.read(length)))
                answer = outer.answers[0] if len(outer.answers) == 1 else outer.answers.pop(0)
                answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def reply(status, value, **headers):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()

    def answer(handler):
        handler.send_response(status)
        handler.send_header("content-length", str(len(data)))
        for name, text in headers.items():
            handler.send_header(name.replace("_", "-"), text)
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def choice(**choice):
    return reply(200, {"choices": [choice]})


def first(*answers, **options):
    with Server(*answers) as server:
        return CompletionsServer(server.url, "m1", **options).first_token("hello")


ODD = {
    "chat": choice(message={"role": "assistant", "content": "hi"}),
    "text null": choice(text=None, logprobs=None),
    "text a number": choice(text=3),
    "choices as text": reply(200, {"choices": ["hello"]}),
    "choices a text": reply(200, {"choices": "hello"}),
    "choices null": reply(200, {"choices": None}),
    "choices empty": reply(200, {"choices": []}),
    "no choices": reply(200, {}),
    "a list": reply(200, [1, 2]),
    "a text": reply(200, "hello"),
    "null": reply(200, None),
    "token_logprobs a mapping": choice(text="a", logprobs={"token_logprobs": {"0": -1}}),
    "token_logprobs texts": choice(text="a", logprobs={"token_logprobs": ["-1.0"]}),
    "token_logprobs a switch": choice(text="a", logprobs={"token_logprobs": [True]}),
    "logprobs a text": choice(text="a", logprobs="none"),
    "logprobs a list": choice(text="a", logprobs=[-1.0]),
    "NaN": reply(200, b'{"choices":[{"text":"a","logprobs":{"token_logprobs":[NaN]}}]}'),
    "infinite": reply(200, b'{"choices":[{"text":"a","logprobs":{"token_logprobs":[-1e999]}}]}'),
    "huge": choice(text="a", logprobs={"token_logprobs": [-1e308]}),
    "above 0": choice(text="a", logprobs={"token_logprobs": [0.5]}),
    "content of texts": choice(text="a", logprobs={"content": [{"logprob": "x"}]}),
    "no JSON": reply(200, b"<html>login</html>"),
    "a stream": reply(200, b'data: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n'),
    "not UTF-8": reply(200, b"\xff\xfe{}"),
    "too large": reply(200, b'{"choices":[{"text":"' + b"a" * (2 << 20) + b'"}]}'),
    "deep": reply(200, b"[" * 100_000),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_is_one_sentence(name):
    with pytest.raises(MachineError, match="gave no completion for model 'm1'") as error:
        first(ODD[name])
    assert error.value.exit_code == 3 and "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "logprobs, value",
    [
        (None, None),
        ({}, None),
        ({"token_logprobs": []}, None),
        ({"token_logprobs": [None]}, None),
        ({"token_logprobs": [-0.25]}, -0.25),
        ({"token_logprobs": [0]}, 0.0),
        ({"content": [{"token": "a", "logprob": -1.5}]}, -1.5),
    ],
)
def test_what_servers_tell_of_a_log_probability(logprobs, value):
    assert first(choice(text="a", logprobs=logprobs)) == ("a", value)


@pytest.mark.parametrize(
    "answer, said",
    [
        (
            reply(404, {"message": "The model `m1` does not exist."}),
            "The model `m1` does not exist",
        ),
        (reply(404, {"error": {"message": "no such model"}}), "--served-name"),
        (reply(500, {"error": {"message": "CUDA out of memory"}}), 'says: "CUDA out of memory"'),
        (reply(200, {"error": {"message": "model not found"}}), 'it says: "model not found"'),
        (reply(401, {"error": "Unauthorized"}), "--api-key-env NAME"),
        (reply(405, {"detail": "Method Not Allowed"}), "Method Not Allowed"),
        (reply(502, b"<h1>Bad\n gateway</h1>"), "<h1>Bad gateway</h1>"),
        (reply(400, {"error": {"message": "max_tokens must be > 1"}}), "max_tokens must be > 1"),
        (reply(307, b"", location="http://127.0.0.1:1/v1/completions"), "HTTP 307"),
        (reply(500, {"error": f"\x1b[2J {KEY} {'x' * 9000}"}), "[hidden]"),
    ],
)
def test_the_servers_own_words_are_shown(answer, said):
    with pytest.raises(MachineError) as error:
        first(answer, key=KEY)
    assert said in str(error.value) and KEY not in str(error.value)
    assert "\x1b" not in str(error.value) and len(str(error.value)) < 600


def test_a_server_that_loads_is_waited_for_and_not_for_ever():
    busy = reply(503, {"error": "loading model"})
    waited = []
    hurried = reply(503, {}, retry_after="7")
    assert first(busy, hurried, choice(text="a"), wait=waited.append) == ("a", None)
    assert waited == [5.0, 7.0]
    waited = []
    with pytest.raises(MachineError, match="still loading after 600 s"):
        first(reply(503, {"error": "loading"}, retry_after="9999"), wait=waited.append)
    assert sum(waited) == 600


def test_a_drip_ends_with_the_time_for_the_whole():
    def drip(handler):
        handler.send_response(200)
        handler.send_header("content-length", "100000")
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)

    start = time.monotonic()
    with pytest.raises(MachineError, match=r"no whole answer within 0\.3 s"):
        first(drip, timeout_s=0.3)
    assert time.monotonic() - start < 3


def test_the_key_goes_to_the_server_and_the_path_is_its_own():
    with Server(choice(text="a")) as server:
        for url in (server.url, server.url + "/", server.url + "/v1", server.url + "/v1/"):
            CompletionsServer(url, "m1", KEY).first_token("hello")
        CompletionsServer(server.url, "m1").first_token("hello")
    assert {path for path, _, _ in server.requests} == {"/v1/completions"}
    sent = [
        next((v for k, v in h.items() if k.lower() == "authorization"), None)
        for _, h, _ in server.requests
    ]
    assert sent == [f"Bearer {KEY}"] * 4 + [None]
    assert KEY not in repr(CompletionsServer(server.url, "m1", KEY))


def test_no_server():
    with pytest.raises(MachineError, match=r"gave no completion for model 'm' .*refused"):
        CompletionsServer("http://127.0.0.1:9", "m").first_token("hello")


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "file:///etc/passwd", "http://", "no url", "http://[x", "http://x:99999999"],
)
def test_what_is_no_address_is_the_users_mistake(url):
    with pytest.raises(CheckpointError, match="--served is"):
        CompletionsServer(url, "m")


def test_a_key_that_no_header_can_hold():
    with pytest.raises(CheckpointError, match="API key holds") as error:
        CompletionsServer("http://x", "m", "two\nlines")
    assert "two" not in str(error.value)


def test_the_command_takes_the_key_of_a_variable(base, adapter, merged):
    arguments = ["verify", str(merged), "--adapter", str(adapter), "--base", str(base)]
    options = ["--served", "http://127.0.0.1:9", "--api-key-env", "NOT_SET_HERE"]
    done = CliRunner().invoke(app, [*arguments, *options])
    assert done.exit_code == 2 and "NOT_SET_HERE" in done.output
