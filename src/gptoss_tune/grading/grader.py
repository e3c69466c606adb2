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
"""Searching time of one evaluation; what is left over once it is used up is not matched."""


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


class Grading:
    """Grades the answers of one evaluation within its time."""

    def __init__(self, seconds: float = SECONDS_IN_ALL) -> None:
        """Allow ``seconds`` of judging in all."""
        self._whole = self._left = seconds

    def grade(self, grader: Grader, given: Given) -> dict[str, Any]:
        """Return ``kind``, ``passed`` and ``expected``, and ``note`` and ``label`` where there are.

        Args:
            grader: How to judge.
            given: The answer.
        """
        verdict = self._verdict(grader, given)
        result = {"kind": grader.kind, "passed": verdict.passed, "expected": grader.expected}
        if verdict.note is not None:
            result["note"] = verdict.note
        if verdict.label is not None:
            result["label"] = verdict.label
        return result

    def _verdict(self, grader: Grader, given: Given) -> Verdict:
        if grader.seconds == 0:
            return grader.judge(given, 0)
        allowed, started = min(grader.seconds, self._left), time.monotonic()
        if allowed <= 0:
            return Verdict(False, f"not judged: the {self._whole:g} s for {grader.kind} are up")
        try:
            return grader.judge(given, allowed)
        finally:
            self._left -= time.monotonic() - started
