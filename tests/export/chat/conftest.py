"""A stand-in for a chat server, and a command in a terminal of its own."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])")


class StandIn:
    """An OpenAI-compatible server that does what the last message asks for.

    Attributes:
        asked: The bodies of the requests for an answer.
        keys: The bearer tokens that came.
        left: Set when a client closed its connection in the middle of an answer.
        refused: A field that is answered with status 400, if any.
        models: What is listed.
        busy: How many requests are first answered with 503.
        after: The seconds after which these may ask again.
        came: The count of tokens in an answer; ``None``: 30.
    """

    def __init__(self):
        self.asked, self.keys = [], []
        self.left = threading.Event()
        self.refused, self.busy, self.counts = None, 0, True
        self.after, self.came = "0", None
        self.models = [{"id": "tuned", "max_model_len": 4096}]
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self.json(200, {"object": "list", "data": stand_in.models})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                stand_in.keys.append(self.headers.get("authorization"))
                stand_in.answer(self, body)

            def json(self, status, value):
                raw = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, to, body):
        if self.busy:
            self.busy -= 1
            to.send_response(503)
            to.send_header("retry-after", self.after)
            to.end_headers()
            return
        if self.refused in body:
            to.json(400, {"error": {"message": f"unknown field {self.refused}"}})
            return
        self.asked.append(body)
        said = body["messages"][-1]["content"]
        if said == "refuse":
            to.json(400, {"error": {"message": "the answer is\x1b[2J no"}})
            return
        if said == "page":
            raw = b"<!doctype html>\n<title>Sign in</title>\n"
            to.send_response(200)
            to.send_header("content-type", "text/html")
            to.send_header("content-length", str(len(raw)))
            to.end_headers()
            to.wfile.write(raw)
            return
        if said == "whole":
            message = {"role": "assistant", "content": "in one", "reasoning": "no stream"}
            to.json(200, {"choices": [{"message": message, "finish_reason": "stop"}]})
            return
        to.send_response(200)
        to.send_header("content-type", "text/event-stream")
        to.end_headers()
        try:
            self.stream(to, said, body)
        except OSError:
            self.left.set()

    def stream(self, to, said, body):
        def send(delta, finish=None, **more):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            event(json.dumps({"choices": [choice], **more}))

        def event(text):
            to.wfile.write(f"data: {text}\n\n".encode())
            to.wfile.flush()

        to.wfile.write(b": a comment that keeps the connection\n\n")
        send({"role": "assistant", "content": ""})
        send({"reasoning_content": "Thinking ", "reasoning": "Thinking "})
        send({"reasoning": "of it."})
        if said == "slow":
            for number in range(3000):
                send({"content": f"word{number} "})
                time.sleep(0.02)
        if said == "pause":
            time.sleep(2)
        if said == "break":
            send({"content": "half"})
            event(json.dumps({"error": {"message": "the engine died"}}))
            return
        if said == "drop":
            send({"content": "half"})
            return
        if said == "unsaid":
            send({"content": "all of it"})
            event("[DONE]")
            return
        if said == "filtered":
            send({"content": "half"})
            send({}, "content_filter")
            return
        if said == "declined":
            send({"refusal": "I will "})
            send({"refusal": "not."}, "stop")
            return
        if said == "garbage":
            event("{no json")
            return
        if said == "tool":
            call = {"index": 0, "id": "c", "function": {"name": "weather", "arguments": ""}}
            send({"tool_calls": [call]})
            send({"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]})
            send({"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]})
            send({}, "tool_calls")
        else:
            text = "\x1b]0;owned\x07 \u202e北京" if said == "escapes" else f"You said: {said}"
            send({"content": text[:4]})
            send({"content": text[4:]})
            send({}, "length" if said == "long" else "stop")
        if self.counts and body.get("stream_options", {}).get("include_usage"):
            came = self.came or 30
            usage = {"prompt_tokens": 70, "completion_tokens": came, "total_tokens": 70 + came}
            event(json.dumps({"choices": [], "usage": usage}))
        event("[DONE]")

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def stand_in():
    server = StandIn()
    yield server
    server.close()


class Terminal:
    """A process in a terminal, whose screen is read as text without escapes.

    Attributes:
        raw: All that was written.
    """

    def __init__(self, main, process):
        self.main, self.process = main, process
        self.raw, self._place = "", 0

    @property
    def text(self):
        return ESCAPES.sub("", self.raw)

    def until(self, words, timeout=90):
        """Read on until ``words`` stand behind what was found before; return what was before."""
        return self._until(re.compile(re.escape(words)), timeout)

    def _until(self, pattern, timeout):
        end, words = time.monotonic() + timeout, pattern.pattern
        while (found := pattern.search(self.text, self._place)) is None:
            wait = end - time.monotonic()
            ready = wait > 0 and select.select([self.main], [], [], wait)[0]
            assert ready, f"no {words!r} in {self.text[self._place :]!r}"
            try:
                self.raw += os.read(self.main, 65536).decode(errors="replace")
            except OSError:
                raise AssertionError(f"it ended without {words!r}: {self.text!r}") from None
        before, self._place = self.text[self._place : found.start()], found.end()
        return before

    def type(self, text):
        os.write(self.main, text.encode())

    def prompted(self):
        """Wait for the next prompt, and until the terminal is the editor's."""
        found = self._until(re.compile("\n>[ \b]"), 90)
        time.sleep(0.5)
        return found

    def resize(self, rows, columns):
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def ended(self, timeout=60):
        """Read what is left, and return the exit code."""
        while True:
            try:
                if not select.select([self.main], [], [], timeout)[0]:
                    break
                self.raw += os.read(self.main, 65536).decode(errors="replace")
            except OSError:
                break
        return self.process.wait(timeout)


MAIN = "from gptoss_tune.cli import main; main()"


@pytest.fixture
def in_terminal(tmp_path):
    """Return a context that runs ``gptoss-tune chat`` in a terminal."""

    @contextmanager
    def run(*arguments, code=MAIN, **environment):
        main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-c", code, "chat", *map(str, arguments)],
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={
                **os.environ,
                "TERM": "xterm-256color",
                "XDG_CACHE_HOME": str(tmp_path / "cache"),
                "OMP_NUM_THREADS": "1",
                **environment,
            },
        )
        os.close(side)
        try:
            yield Terminal(main, process)
        finally:
            with_group = process.poll() is None
            if with_group:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(main)

    return run
