"""Many judgements at a time, beside a model that waits: all of them, or as many as a judge gave.

A judge that stops answering in the middle of a training run does not end it: after some answers in
a row for which there was none, the rest is not asked any more and is not judged. One that refuses
an exchange, which may be too long for it, is there and goes on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gptoss_tune.safety.judge import Judge, Judgement

GIVEN_UP_AFTER: Final = 3
"""Answers in a row that a judge leaves without any word, tries and pauses included."""


@dataclass(frozen=True)
class Exchange:
    """What is judged: what was asked and what was answered, as text."""

    request: str
    answer: str


class Judging:
    """Asks a judge about exchanges in threads of its own; whoever started it looks on.

    Judgements are remembered, so that the base's answers, and those that tuning did not change, are
    judged once a run.
    """

    def __init__(self, judge: Judge) -> None:
        """Ask ``judge``; nothing is asked yet."""
        self.judge = judge
        self._known: dict[Exchange, Judgement] = {}
        self._lock = threading.Lock()
        self._silent, self._stopped = 0, False
        self._threads: list[threading.Thread] = []

    def start(self, exchanges: Sequence[Exchange]) -> None:
        """Begin with those that are not judged yet."""
        self._silent, self._stopped = 0, False
        waiting: queue.SimpleQueue[Exchange] = queue.SimpleQueue()
        asked = [one for one in dict.fromkeys(exchanges) if one not in self._known]
        for exchange in asked:
            waiting.put(exchange)
        number = min(self.judge.section.parallel, len(asked))
        self._threads = [
            threading.Thread(target=self._work, args=(waiting,), daemon=True) for _ in range(number)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def finished(self) -> bool:
        """Whether nothing is asked any more."""
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Ask nothing further; what is under way is left to itself."""
        self._stopped = True

    def judgement(self, exchange: Exchange) -> Judgement:
        """Return what was made of an exchange."""
        with self._lock:
            found = self._known.get(exchange)
        return found or Judgement("not judged", None, "the judge had stopped answering")

    def forget_failures(self) -> None:
        """Leave what was not judged to be asked again the next time."""
        with self._lock:
            self._known = {e: j for e, j in self._known.items() if j.outcome != "not judged"}

    def _work(self, waiting: queue.SimpleQueue[Exchange]) -> None:
        while self._silent < GIVEN_UP_AFTER and not self._stopped:
            try:
                exchange = waiting.get_nowait()
            except queue.Empty:
                return
            found = self.judge.judge(exchange.request, exchange.answer)
            with self._lock:
                self._known[exchange] = found
                gone = found.outcome == "not judged" and not found.refused
                self._silent = self._silent + 1 if gone else 0
