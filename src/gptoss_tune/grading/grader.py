"""What every grader is: a frozen description of the right answer that judges a given one.

A grader comes from a data file and judges text that a model wrote; both may be anyone's. So what it
does is bounded in time: ``Grading`` hands each verdict a share of what one evaluation may take.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from gptoss_tune.grading.answer import Given

SECONDS_PER_VERDICT: Final = 1.0
SECONDS_IN_ALL: Final = 10.0
SLOW_SECONDS: Final = {"pattern": SECONDS_IN_ALL, "maths": 60.0, "json_schema": 30.0}
"""What the slow verdicts of a kind may take in one evaluation, together. Kinds that are not here
have no such limit: a test of code that ends at its own limit has failed, and is to be run."""
QUICK: Final = 0.25
"""Seconds that no verdict is denied, and that do not count: 1,000 rows of mathematics at 10 ms each
are judged, whatever came before them."""
NOT_JUDGED: Final = "not judged"
"""Begins the note of a verdict that had to be given up; such an answer counts as wrong."""


@dataclass(frozen=True)
class Verdict:
    """What a grader found.

    Attributes:
        passed: Whether the answer is right.
        note: Why it could not be judged, or what was wrong with it; ``None``: nothing to say.
        label: What was understood of the answer, where a grader reads a class out of it.
    """

    passed: bool
    note: str | None = None
    label: str | None = None


class Grader(Protocol):
    """Judges answers to one question; frozen, and equal where it judges the same.

    Attributes:
        kind: Its name in a data file.
        seconds: What one verdict may take; 0 for one that ends by itself.
    """

    kind: ClassVar[str]
    seconds: ClassVar[float]

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        ...

    def judge(self, given: Given, seconds: float) -> Verdict:
        """Return the verdict on an answer, within so many seconds."""
        ...


def as_grade(grader: Grader, verdict: Verdict) -> dict[str, Any]:
    """Return ``kind``, ``passed`` and ``expected``, and ``note`` and ``label`` where there are."""
    result = {"kind": grader.kind, "passed": verdict.passed, "expected": grader.expected}
    if verdict.note is not None:
        result["note"] = verdict.note
    if verdict.label is not None:
        result["label"] = verdict.label
    return result


class Grading:
    """Grades the answers of one evaluation within its time.

    Of each kind in ``SLOW_SECONDS`` the verdicts that take over ``QUICK`` seconds share so many;
    once they are used up each verdict still gets ``QUICK`` seconds. So one pattern that backtracks
    on every row costs seconds, and costs the other rows nothing.
    """

    def __init__(self, seconds: float | None = None) -> None:
        """Allow ``seconds`` to each kind of ``SLOW_SECONDS``; ``None``: what stands there."""
        self._left = dict(SLOW_SECONDS)
        if seconds is not None:
            self._left = dict.fromkeys(SLOW_SECONDS, seconds)

    def grade(self, grader: Grader, given: Given) -> dict[str, Any]:
        """Return ``kind``, ``passed`` and ``expected``, and ``note`` and ``label`` where there are.

        Args:
            grader: How to judge.
            given: The answer.
        """
        return as_grade(grader, self._verdict(grader, given))

    def _verdict(self, grader: Grader, given: Given) -> Verdict:
        if grader.seconds == 0 or grader.kind not in self._left:
            return grader.judge(given, grader.seconds)
        allowed = min(grader.seconds, max(self._left[grader.kind], QUICK))
        started = time.monotonic()
        try:
            return grader.judge(given, allowed)
        finally:
            took = time.monotonic() - started
            if took > QUICK:
                self._left[grader.kind] -= took
