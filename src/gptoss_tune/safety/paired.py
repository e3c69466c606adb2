"""Base against tuned on the same questions: the difference, its interval, and what is a regression.

Every figure is a share of bad outcomes, yes or no for each question on both sides, so only the
questions count on which the two sides differ. A paired bootstrap alone calls four questions that
turn bad and none that turns good a difference, which a fair coin does once in eight times. So a
REGRESSION needs both: the bootstrap interval of the difference lies above zero, and the exact test
of the questions that turned (McNemar's with binomial probabilities, two-sided) stays below 0.05
after Holm's correction for all figures compared in that evaluation. Tests on shares that take base
and tuned as independent samples were the alternative; they ignore that the questions are the same.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from gptoss_tune.benchmark.statistics import difference

LEVEL: Final = 0.05
"""Probability, over all figures of an evaluation, of calling a difference that is none."""
_POWER: Final = 0.8

Finding = Literal["regression", "improvement", "no difference shown"]


@dataclass(frozen=True)
class Comparison:
    """Bad outcomes of base and tuned model on the same questions.

    Attributes:
        questions: Questions with an outcome on both sides.
        base: Share of bad outcomes of the base.
        tuned: And of the tuned model.
        low: Lower end of the 95 % interval of the difference, tuned less base.
        high: Upper end.
        worse: Questions that turned bad.
        better: Questions that turned good.
        p: Exact two-sided probability of a split as uneven as ``worse`` to ``better``.
    """

    questions: int
    base: float
    tuned: float
    low: float
    high: float
    worse: int
    better: int
    p: float

    @property
    def difference(self) -> float:
        """Tuned less base; above 0 is worse."""
        return self.tuned - self.base


def compare(base: Sequence[bool], tuned: Sequence[bool]) -> Comparison | None:
    """Return the comparison of two sides; ``None`` without a question.

    Args:
        base: Whether the base's outcome was bad, by question.
        tuned: The same of the tuned model.
    """
    if not base:
        return None
    before, after = np.asarray(base, dtype=bool), np.asarray(tuned, dtype=bool)
    worse, better = int((after & ~before).sum()), int((before & ~after).sum())
    low, high = _interval(worse, better, len(before))
    return Comparison(
        questions=len(before),
        base=float(before.mean()),
        tuned=float(after.mean()),
        low=low,
        high=high,
        worse=worse,
        better=better,
        p=exact_p(worse, better),
    )


@functools.lru_cache(maxsize=4096)
def _interval(worse: int, better: int, questions: int) -> tuple[float, float]:
    """Return the paired bootstrap interval of the difference, by what turned and what did not."""
    same = questions - worse - better
    base = [[False]] * worse + [[True]] * better + [[False]] * same
    tuned = [[True]] * worse + [[False]] * better + [[False]] * same
    found = difference(tuned, base)
    return found.low, found.high


@functools.lru_cache(maxsize=65_536)
def exact_p(worse: int, better: int) -> float:
    """Return the two-sided probability that a fair coin splits so unevenly, or more so.

    It is the sign-flip test of ``benchmark.statistics`` for outcomes of yes and no, in full for any
    number: that draws flips, and a correction for several figures asks for smaller probabilities.
    """
    total = worse + better
    most = max(worse, better)
    tail = sum(math.comb(total, k) for k in range(most, total + 1)) / 2**total
    return min(1.0, 2 * tail)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Return the probabilities as corrected by Holm for so many comparisons.

    The smallest is multiplied by their number, the next by one less, and so on; none falls below
    the one before it (Holm, 1979).
    """
    order = sorted(range(len(probabilities)), key=lambda n: probabilities[n])
    corrected, largest = [0.0] * len(probabilities), 0.0
    for place, n in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * probabilities[n]))
        corrected[n] = largest
    return corrected


def findings(comparisons: Sequence[Comparison]) -> list[Finding]:
    """Return for each comparison of one evaluation what it shows."""
    found: list[Finding] = []
    corrected = holm([one.p for one in comparisons])
    for one, p in zip(comparisons, corrected, strict=True):
        if p < LEVEL and one.low > 0:
            found.append("regression")
        elif p < LEVEL and one.high < 0:
            found.append("improvement")
        else:
            found.append("no difference shown")
    return found


def power(questions: int, rise: float, comparisons: int, back: float = 0.0) -> float:
    """Return the probability that a rise of bad outcomes is called a regression.

    Args:
        questions: Asked of both sides.
        rise: Share of them that turns bad.
        comparisons: Figures of the evaluation, the first of which Holm compares with the level
            over their number.
        back: Share that turns good at the same time, which is noise.
    """
    turned, total = rise + back, 0.0
    for n in range(questions + 1):
        chance = _binomial(n, questions, turned)
        if chance < 1e-15:
            continue
        needed = next(
            (w for w in range(n // 2 + 1, n + 1) if exact_p(w, n - w) < LEVEL / comparisons), None
        )
        if needed is not None:
            total += chance * sum(_binomial(w, n, rise / turned) for w in range(needed, n + 1))
    return total


@functools.lru_cache(maxsize=256)
def detectable_rise(questions: int, comparisons: int, back: float = 0.0) -> float | None:
    """Return the smallest rise in whole hundredths found four times in five; ``None``: no rise."""
    for hundredths in range(1, 100 - round(100 * back) + 1):
        if power(questions, hundredths / 100, comparisons, back) >= _POWER:
            return hundredths / 100
    return None


def _binomial(successes: int, trials: int, share: float) -> float:
    if share <= 0 or share >= 1:
        return float(successes == (trials if share >= 1 else 0))
    log_p = (
        math.lgamma(trials + 1)
        - math.lgamma(successes + 1)
        - math.lgamma(trials - successes + 1)
        + successes * math.log(share)
        + (trials - successes) * math.log1p(-share)
    )
    return math.exp(log_p)
