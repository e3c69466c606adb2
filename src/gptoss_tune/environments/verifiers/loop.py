"""The event loop that coroutines of an environment run in, left when one of them never gives way.

One for all episodes, because a client of an API keeps its connections in the loop that it was first
used in; a loop for each call would close them under it. A coroutine that blocks would hold up all
others, so a loop that does not answer is left, and what has not begun in it begins in a new one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from gptoss_tune.environments.bounded import GivenUp, ask_to_end

_ANSWERS_WITHIN: Final = 1.0
"""Seconds that a loop has to answer."""
_LOOK_EVERY: Final = 0.2


class SharedLoop:
    """Runs coroutines to their end for whoever asks, from any thread."""

    def __init__(self) -> None:
        """Start nothing: a thread begins with the first coroutine."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: dict[asyncio.AbstractEventLoop, threading.Thread] = {}

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Return what the awaitable that ``work`` gives comes to, or raise what it raises.

        The thread that asks waits in Python, so that it can be asked to end itself; what it waits
        for is cancelled then.
        """
        while True:
            loop, begun = self._current(), threading.Event()
            answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
            coroutine = self._began(begun, work, answer)
            running = asyncio.run_coroutine_threadsafe(coroutine, loop)
            try:
                while begun.wait(_LOOK_EVERY) or not self._stuck(loop):
                    concurrent.futures.wait([answer], _LOOK_EVERY)
                    if answer.done():
                        return answer.result()
            except BaseException:
                if not answer.done():
                    running.cancel()
                    if self._stuck(loop):
                        ask_to_end(self._threads[loop])
                raise
            running.cancel()
            with contextlib.suppress(RuntimeError):  # the loop came back, and looks at it
                coroutine.close()

    def _stuck(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether a loop does not answer; nothing more is begun in it then."""
        answered = threading.Event()
        loop.call_soon_threadsafe(answered.set)
        if answered.wait(_ANSWERS_WITHIN):
            return False
        with self._lock:
            if self._loop is loop:
                self._loop = None
        return True

    async def _began(
        self,
        begun: threading.Event,
        work: Callable[[], Awaitable[Any]],
        answer: concurrent.futures.Future[Any],
    ) -> None:
        """Answer by itself: a result that the loop hands over waits for the loop."""
        begun.set()
        loop = asyncio.get_running_loop()
        try:
            answer.set_result(await work())
        except BaseException as error:
            answer.set_exception(error)
            # One that blocked the loop was asked to end; those who wait in it may go on.
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            if self._loop is not loop and len(asyncio.all_tasks(loop)) == 1:
                loop.stop()

    def _current(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = self._loop = asyncio.new_event_loop()
                loop.set_exception_handler(_say_nothing)
                self._threads[loop] = threading.Thread(
                    target=_serve, args=(loop,), name="verifiers", daemon=True
                )
                self._threads[loop].start()
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(GivenUp):
        loop.run_forever()


def _say_nothing(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Whoever asked for a coroutine that was left has its reason already."""
