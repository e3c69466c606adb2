"""Answers one after the other, in a thread of their own, passed on as they come.

The model is one, and so is its card: a second request waits for the first. Whoever leaves, waiting
or answered, gives its turn up before the next token.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from gptoss_tune.evaluate.channels import Delta, Ended
from gptoss_tune.evaluate.conversation import Answerer
from gptoss_tune.evaluate.generate import Sampling
from gptoss_tune.evaluate.server.requests import BadRequest

MOST_WAITING: Final = 32
"""Requests that may wait."""


class Said(NamedTuple):
    """New text of an answer, and how many tokens were generated so far."""

    delta: Delta
    tokens: int


class Finished(NamedTuple):
    """Why an answer ended, and how many tokens it has."""

    ended: Ended
    tokens: int


class AnswerQueue:
    """Computes the answers of one model, one at a time, in the order of the requests.

    Attributes:
        closing: Set when the server ends; answers end with it.
    """

    def __init__(self, answerer: Answerer) -> None:
        """Answer with ``answerer``."""
        self.closing = threading.Event()
        self._answerer = answerer
        self._thread = ThreadPoolExecutor(1, "answers")
        self._waiting = 0

    async def answer(
        self, prompt: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[Said | Finished, None]:
        """Yield an answer as it comes, then why it ended; closing the iterator stops the model.

        Raises:
            BadRequest: Too many wait already, or the server ends.
            GptossTuneError: The model could not answer.
        """
        if self._waiting >= MOST_WAITING:
            raise BadRequest(
                f"{MOST_WAITING} requests wait already; try again later", None, "busy", 503
            )
        if self.closing.is_set():
            raise BadRequest("the server is ending", None, "busy", 503)
        loop, left = asyncio.get_running_loop(), threading.Event()
        events: asyncio.Queue[Said | Finished | BaseException] = asyncio.Queue()

        def put(event: Said | Finished | BaseException) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def compute() -> None:
            try:
                stream = self._answerer.stream(
                    prompt, sampling, lambda: left.is_set() or self.closing.is_set()
                )
                for delta in stream:
                    put(Said(delta, stream.tokens))
                put(Finished(stream.ended, stream.tokens))
            except Exception as error:  # whatever it is, its request has to hear of it
                put(error)

        self._waiting += 1
        job = self._thread.submit(compute)
        try:
            while True:
                event = await events.get()
                if isinstance(event, BaseException):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            self._waiting -= 1
            left.set()
            job.cancel()

    def close(self) -> None:
        """End every answer, and the thread after the one at work."""
        self.closing.set()
        self._thread.shutdown(wait=False, cancel_futures=True)
