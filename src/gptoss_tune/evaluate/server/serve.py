"""Runs the server until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from gptoss_tune.evaluate.conversation import Answerer
from gptoss_tune.evaluate.generate import Sampling
from gptoss_tune.evaluate.server.app import build_app, served_name
from gptoss_tune.evaluate.server.queue import AnswerQueue
from gptoss_tune.evaluate.server.settings import ServerSettings

_GRACE_S = 5


class ModelServer(uvicorn.Server):
    """One model behind OpenAI's API; a signal ends the answer at work first."""

    def __init__(
        self,
        answerer: Answerer,
        usual: Sampling,
        settings: ServerSettings,
        *,
        instructions: str | None = None,
    ) -> None:
        """Serve ``answerer``; the rest is as in ``build_app``."""
        self._queue = AnswerQueue(answerer)
        app = build_app(answerer, usual, settings, self._queue, instructions=instructions)
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_graceful_shutdown=_GRACE_S,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End answers, then the server."""
        self._queue.closing.set()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """End answers and the server, from any thread."""
        self._queue.closing.set()
        self.should_exit = True

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until ``stop`` or a signal."""
        try:
            super().run(sockets)
        finally:
            self._queue.close()


def serve(
    answerer: Answerer,
    usual: Sampling,
    settings: ServerSettings,
    bound: socket.socket,
    *,
    say: Callable[[str], None],
    instructions: str | None = None,
) -> None:
    """Serve until Ctrl-C, and say where.

    Args:
        answerer: The model.
        usual: Sampling of requests that leave it open.
        settings: Who may ask.
        bound: Its socket.
        say: Prints a line.
        instructions: Developer instructions of requests without any.
    """
    server = ModelServer(answerer, usual, settings, instructions=instructions)
    bound.listen()  # who asks as soon as the address is said waits instead of being refused
    say(welcome(served_name(answerer.name), settings, bound))
    with contextlib.suppress(KeyboardInterrupt):
        server.run([bound])
    say("stopped")


def welcome(name: str, settings: ServerSettings, bound: socket.socket) -> str:
    """Return where a server is, and how it is asked."""
    host, port = bound.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    key = "the one it was started with" if settings.api_key else "any text"
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hello"}]})
    sent = ' -H "Authorization: Bearer $GPTOSS_TUNE_API_KEY"' if settings.api_key else ""
    return (
        f"serving {name} at {url} until Ctrl-C\n"
        f"  any page or program for OpenAI's API: base URL {url}, model {name}, API key {key}\n"
        f"  curl {url}/chat/completions -H 'Content-Type: application/json'{sent} -d '{body}'"
    )
