"""Calls of a user's code that may raise or never end, many at a time, each within its time.

Each call has a thread of its own that nothing waits for when the process ends. A call that is out
of time is given up: its thread is asked to end by an exception, which Python code meets at its next
line, and is left alone where it does not. A process for each was the alternative: it could be
killed, but an environment lives in this one, with what it holds.

Limit. C code that keeps Python's lock holds up everything, this module included: the one that is
met is ``re`` with a pattern that backtracks without end. ``regex`` takes a timeout, and gives the
lock away with ``concurrent=True``.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gptoss_tune.display import one_line

MOST_LEFT: Final = 64
"""Calls out of time that may still be running; from there on a call is refused."""
_LONGEST_REASON: Final = 300
_LOOK_EVERY: Final = 0.2
"""Seconds between two calls of ``waiting``."""


@dataclass(frozen=True)
class Call:
    """Something to call.

    Attributes:
        work: Without arguments; an awaitable that it returns is run to its end.
        seconds: What it may take, from when it begins.
        interrupt: Whether its thread is asked to end when it is out of time.
    """

    work: Callable[[], Any]
    seconds: float
    interrupt: bool = True


@dataclass(frozen=True)
class Failure:
    """A call that gave nothing.

    Attributes:
        reason: What it raised and where, or how long it was waited for.
        error: What it raised; ``None``: it did not.
    """

    reason: str
    error: BaseException | None = field(default=None, compare=False)


class GivenUp(SystemExit):
    """Raised inside of a thread that is asked to end."""


class Bounded:
    """Runs calls in threads; remembers those that never ended."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self._left: list[threading.Thread] = []

    @property
    def left(self) -> int:
        """Calls out of time that still run."""
        self._left = [thread for thread in self._left if thread.is_alive()]
        return len(self._left)

    def run(
        self, calls: Sequence[Call], parallel: int, waiting: Callable[[], None] = lambda: None
    ) -> list[Any]:
        """Return what each call gave, or its ``Failure``, in order.

        Args:
            calls: What to call.
            parallel: So many at a time.
            waiting: Called several times a second; what it raises ends this, with nothing waited
                for.
        """
        waiting_for = deque(range(len(calls)))
        results: list[Any] = [None] * len(calls)
        done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        running: dict[int, tuple[threading.Thread, float]] = {}
        while waiting_for or running:
            while waiting_for and len(running) < parallel:
                number = waiting_for.popleft()
                if self.left >= MOST_LEFT:
                    results[number] = Failure(f"not called: {MOST_LEFT} earlier ones still run")
                    continue
                thread = threading.Thread(
                    target=_called, args=(number, calls[number], done), name="bounded", daemon=True
                )
                running[number] = (thread, time.monotonic() + calls[number].seconds)
                thread.start()
            if running:
                self._take(calls, results, running, done)
            waiting()
        return results

    def _take(
        self,
        calls: Sequence[Call],
        results: list[Any],
        running: dict[int, tuple[threading.Thread, float]],
        done: queue.SimpleQueue[tuple[int, Any]],
    ) -> None:
        """Wait a moment for the next result, and give up what is out of time."""
        first = min(until for _, until in running.values())
        wait = min(_LOOK_EVERY, max(0.0, first - time.monotonic()))
        try:
            number, result = done.get(timeout=wait) if wait else done.get_nowait()
        except queue.Empty:
            pass
        else:
            # A call that was given up may still come to an end; nobody asks for it any more.
            if running.pop(number, None) is not None:
                results[number] = result
            return
        now = time.monotonic()
        for number in [n for n, (_, until) in running.items() if until <= now]:
            thread, _ = running.pop(number)
            call = calls[number]
            results[number] = Failure(f"took longer than {call.seconds:g} s")
            if call.interrupt:
                ask_to_end(thread)
            self._left.append(thread)


def _called(number: int, call: Call, done: queue.SimpleQueue[tuple[int, Any]]) -> None:
    try:
        result = call.work()
        if inspect.isawaitable(result):
            result = asyncio.run(asyncio.wait_for(_awaited(result), call.seconds))
    except GivenUp:
        return
    except BaseException as error:  # SystemExit too: it is the code's, not the run's
        result = Failure(reason(error), error)
    done.put((number, result))


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def ask_to_end(thread: threading.Thread) -> None:
    """Have Python raise in a thread; without effect on one that has ended."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(GivenUp)
        )


def reason(error: BaseException) -> str:
    """Return what an exception says and the file and line where it was raised, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    try:
        said = str(error)
    except Exception:
        said = "it cannot be shown"
    text = one_line(f"{type(error).__name__}: {said}" if said else type(error).__name__)
    return (text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}...") + where
