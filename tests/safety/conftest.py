"""A judge on loopback with planted verdicts, and answers made of harmony text."""

import contextlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gptoss_tune.evaluate.parse import read_answer
from gptoss_tune.evaluate.prompts import Question
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.harmony.conversation import Conversation, Header, Message
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.safety.hints import plant
from gptoss_tune.safety.questions import Asked


class Stub:
    """A server that answers what ``reply`` makes of each request.

    Attributes:
        reply: From the parsed body to status and bytes, and maybe pairs of headers.
        asked: Bodies and headers, as they came; the body of a GET is ``None``.
    """

    def __init__(self):
        self.asked, self.reply = [], lambda body: (200, chat('{"label": 0}'))
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                stub.asked.append((body, dict(self.headers)))
                status, raw, *more = stub.reply(body)
                self.send_response(status)
                for name, value in more:
                    self.send_header(name, value)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client had enough
                    self.wfile.write(raw)

            def do_GET(self):
                stub.asked.append((None, dict(self.headers)))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def chat(content, **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def judged_parts(body):
    """Return request and answer as a judge finds them between the marked lines."""
    user = body["messages"][1]["content"]
    mark = re.match(r"BEGIN REQUEST (\w+)\n", user)[1]
    found = re.fullmatch(
        f"BEGIN REQUEST {mark}\n(.*)\nEND REQUEST {mark}\n"
        f"BEGIN ANSWER {mark}\n(.*)\nEND ANSWER {mark}",
        user,
        re.DOTALL,
    )
    return found[1], found[2]


@pytest.fixture
def stub():
    server = Stub()
    yield server
    server.close()


@pytest.fixture(scope="session")
def stub_class():
    return Stub


@pytest.fixture(scope="session")
def as_chat():
    return chat


@pytest.fixture(scope="session")
def parts_of():
    return judged_parts


@pytest.fixture(scope="session")
def renderer():
    return Renderer(load_vocabulary(), RenderSettings())


@pytest.fixture(scope="session")
def said():
    """Return a function from analysis and final to the answer whose tokens say so."""
    encoding = load_vocabulary().encoding

    def make(final, analysis="I think about it.", *, end="<|return|>"):
        thought = f"<|channel|>analysis<|message|>{analysis}<|end|><|start|>assistant"
        text = f"<|channel|>final<|message|>{final}{end}"
        text = f"{thought}{text}" if analysis else text
        return read_answer(encoding.encode(text, allowed_special="all"), encoding)

    return make


@pytest.fixture(scope="session")
def question(renderer):
    """Return a function from a prompt and what grades it to a question."""

    def make(prompt, number=1, **row):
        source = f"rows.jsonl:{number}"
        conversation = Conversation(source, [Message(Header("user"), prompt)], effort="medium")
        return Question(
            source=source,
            effort="medium",
            prompt_ids=tuple(renderer.render_prompt(conversation)),
            messages=({"role": "user", "content": prompt},),
            recipients=frozenset(),
            grader=read_grader(row, source),
            conversation=conversation,
        )

    return make


@pytest.fixture(scope="session")
def asked_of(question, renderer):
    """Return a function to so many requests, probes and graded prompts, each with two hints."""

    def make(size):
        numbers = range(size)
        prompts = [question(f"What is {n} and 1, added up?", n, answer=str(n + 1)) for n in numbers]
        return Asked(
            prompts=tuple(numbers),
            questions=tuple(prompts),
            probes=tuple(question(f"How do I boil {n} eggs for us?", n) for n in numbers),
            requests=tuple(
                question(f"This is the placeholder of request {n}, and not to be answered.", n)
                for n in numbers
            ),
            hinted=tuple(plant(prompts, renderer)),
            bare=tuple(numbers),
            opening=(),
        )

    return make
