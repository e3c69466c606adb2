"""Questions, a chat server that is told what to answer, and a subject that answers by a script."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gptoss_tune.benchmark.subjects.subject import Asking, Reply
from gptoss_tune.benchmark.suites.suite import Suite
from gptoss_tune.evaluate.parse import Answer, Said
from gptoss_tune.evaluate.prompts import read_questions
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary


@pytest.fixture(scope="session")
def vocabulary():
    return load_vocabulary()


@pytest.fixture(scope="session")
def renderer(vocabulary):
    return Renderer(vocabulary, RenderSettings())


@pytest.fixture
def questions(tmp_path, renderer):
    """Return a function from rows to questions."""

    def read(*rows, efforts=("low",), name="sums.jsonl", max_new_tokens=64):
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return read_questions(
            [str(path)], renderer, limit=10_000, efforts=efforts, max_new_tokens=max_new_tokens
        )

    return read


def sums(count):
    return [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(count)]


@pytest.fixture
def suite(questions):
    """Return a function from a number of sums to a suite of them."""

    def make(count=6, name="sums", samples=1, efforts=("low",), **asking):
        asked = Asking(**{"max_new_tokens": 64, **asking})
        read = questions(*sums(count), efforts=efforts, name=f"{name}.jsonl")
        return Suite(name, "Sums.", tuple(read), asked, samples)

    return make


class Scripted:
    """A subject whose answer to question n is ``says(n, question, asking)``."""

    protocol = "by a script"

    def __init__(self, name, says, **identity):
        self.name, self.says, self.asked, self.closed = name, says, [], 0
        self.identity = {"kind": "scripted", "name": name, **identity}

    def ask(self, questions, asking):
        for number, question in enumerate(questions):
            self.asked.append((question.source, question.effort, asking.seed))
            yield number, self.says(question, asking)

    def close(self):
        self.closed += 1


def reply(final, *, tokens=10, thought=4, ended="return", problems=()):
    answer = Answer((), (Said("final", None, final, ()),), ended, tuple(problems))
    return Reply(answer, tokens, thought)


def expected(question):
    return question.grader.expected


@pytest.fixture
def scripted():
    """Return a function from a name and the rows that are answered right to a subject."""

    def make(name, right=lambda line, seed: True, **more):
        def says(question, asking):
            line = int(question.source.rpartition(":")[2])
            good = right(line, asking.seed)
            return reply(expected(question) if good else "no idea", **more)

        return Scripted(name, says)

    return make


class ChatServer:
    """A chat API on loopback: ``answer(body, number)`` gives a message, or ``(status, JSON)``."""

    def __init__(self, answer, models=("tuned",)):
        outer = self
        self.bodies, self.headers = [], []
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                self.send(200, {"data": [{"id": name} for name in models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    number = len(outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                found = answer(body, number)
                if isinstance(found, tuple):
                    self.send(*found)
                    return
                finish = found.pop("finish_reason", "stop")
                usage = found.pop("usage", {"completion_tokens": 12})
                choice = {"message": {"role": "assistant", **found}, "finish_reason": finish}
                self.send(200, {"choices": [choice], "usage": usage})

            def send(self, status, value):
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def asked(self):
        """The questions, without the probe."""
        texts = [body["messages"][-1]["content"] for body in self.bodies]
        return [text for text in texts if "planet" not in text]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def chat_server():
    """Return a function that starts a ``ChatServer``; all end with the test."""
    started = []

    def start(answer, **options):
        started.append(ChatServer(answer, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


def thinks(body, number):
    """Answer sums as a server of a good model does."""
    text = body["messages"][-1]["content"]
    if not text.startswith("What is"):
        return {"content": "Earth", "reasoning_content": "The third one."}
    left, _, right = text.removeprefix("What is ").removesuffix("?").partition(" + ")
    return {"content": str(int(left) + int(right)), "reasoning_content": "Add them."}


@pytest.fixture
def good_server(chat_server):
    return chat_server(thinks)
