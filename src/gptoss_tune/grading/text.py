"""Graders of an answer: the same text after normalisation, or a regular expression.

Both look at the final channel alone: an answer that is found in the chain of thought only was not
given. A pattern comes from a data file and is searched in text that a model wrote, so its time is
bounded: one that backtracks without end counts as not matched and says so. Python's own ``re``
cannot be stopped once it runs, short of a process to kill; ``regex``, which tiktoken brings, takes
a timeout. It has none for compiling, which writes each wanted repetition out: ``a{1000000000}``
takes all memory. So repetitions are counted before anything is compiled.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import regex

from gptoss_tune.errors import DataError
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.grader import NOT_JUDGED, SECONDS_PER_VERDICT, Verdict
from gptoss_tune.grading.reading.plain import normalized
from gptoss_tune.harmony.fields import shown, take_text

LONGEST_PATTERN: Final = 1_000
"""Characters of a pattern."""
LARGEST_PROGRAM: Final = 500_000
"""Characters of a pattern times its repetitions: at 260 to 800 bytes each, some 100 to 400 MB."""

_REPEATED: Final = re.compile(r"\{([0-9]+)")
_VERBOSE, _SPLIT_NUMBER = re.compile(r"\(\?[\w-]*x"), re.compile(r"\{[0-9]*[\s#]")
"""The flag under which blanks and comments count for nothing, and a number that has some."""


@dataclass(frozen=True)
class Exact:
    """Passes when the normalised final text is one of the normalised answers."""

    answers: tuple[str, ...]

    kind: ClassVar[str] = "exact"
    seconds: ClassVar[float] = 0.0

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        return " | ".join(self.answers)

    def judge(self, given: Given, seconds: float) -> Verdict:
        """Compare the final text."""
        accepted = {normalized(answer) for answer in self.answers}
        return Verdict(given.final is not None and normalized(given.final) in accepted)


@dataclass(frozen=True)
class Pattern:
    """Passes when the expression is found in the final text."""

    pattern: str

    kind: ClassVar[str] = "pattern"
    seconds: ClassVar[float] = SECONDS_PER_VERDICT

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        return self.pattern

    def judge(self, given: Given, seconds: float) -> Verdict:
        """Search the final text."""
        if given.final is None:
            return Verdict(False)
        try:
            return Verdict(regex.search(self.pattern, given.final, timeout=seconds) is not None)
        except TimeoutError:
            return Verdict(False, f"{NOT_JUDGED}: the search did not end within {seconds:.2g} s")


def read_exact(answer: Any, source: str) -> Exact:
    """Return the grader of an accepted text, or of a list of them.

    Raises:
        DataError: It is no text, or one that can never be right.
    """
    listed = answer if isinstance(answer, list) else [answer]
    if not listed:
        raise DataError(f"{source}: answer is an empty list; give an accepted text, or remove it")
    texts = [take_text(text, source, "answer") for text in listed]
    for text in texts:
        if not normalized(text):
            raise DataError(
                f"{source}: answer is {shown(text)}; an empty answer can never be right, remove it"
            )
    return Exact(tuple(texts))


def read_pattern(pattern: Any, source: str) -> Pattern:
    """Return the grader of a regular expression.

    Raises:
        DataError: It is none, matches everything, or is too large to search with.
    """
    return Pattern(_checked_pattern(take_text(pattern, source, "pattern"), source))


def _times(repetitions: int) -> str:
    return f"{repetitions:,}" if repetitions < 10**12 else "over 10^12"


def _checked_pattern(pattern: str, source: str) -> str:
    if not pattern or len(pattern) > LONGEST_PATTERN:
        raise DataError(
            f"{source}: pattern has {len(pattern):,} characters; expected 1 to {LONGEST_PATTERN:,}"
        )
    if _VERBOSE.search(pattern) and _SPLIT_NUMBER.search(pattern):
        raise DataError(
            f"{source}: pattern {shown(pattern)} has blanks or a comment behind a brace, under the "
            "flag x; write its repetitions without"
        )
    # All minima multiplied: groups may stand in each other. What may be left out costs nothing.
    repetitions = math.prod(max(1, int(n)) for n in _REPEATED.findall(pattern))
    if repetitions * len(pattern) > LARGEST_PROGRAM:
        raise DataError(
            f"{source}: pattern {shown(pattern)} asks for {_times(repetitions)} repetitions, and "
            f"its {len(pattern):,} characters times these are over {LARGEST_PROGRAM:,}; write + or "
            "a smaller number"
        )
    try:
        compiled = regex.compile(pattern)
        matches_nothing = compiled.search("", timeout=SECONDS_PER_VERDICT) is not None
    except regex.error as error:
        raise DataError(
            f"{source}: pattern {shown(pattern)} is no regular expression ({error})"
        ) from None
    except (OverflowError, RecursionError, MemoryError, TimeoutError) as error:
        raise DataError(
            f"{source}: pattern {shown(pattern)} is too large to search with "
            f"({type(error).__name__}); write a smaller one"
        ) from None
    if matches_nothing:
        raise DataError(
            f"{source}: pattern {shown(pattern)} matches the empty text, so every answer would "
            "pass; write what has to be there"
        )
    return pattern
