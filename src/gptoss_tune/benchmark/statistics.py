"""Figures with their uncertainty: shares, paired differences, pass@k.

All is over **clusters**: the rows of a suite. A row that is asked at several efforts, or answered
several times, is one cluster, whose answers go together; taken as independent they would make
every interval too narrow. Seeded: the same answers give the same figures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from gptoss_tune.grading.policy_metrics import wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL: Final = 0.95
RESAMPLES: Final = 10_000
_SEED: Final = 20_250_805
_MOST_EXACT: Final = 14
"""Clusters that differ by unlike amounts, up to which all ``2^n`` signs are tried; above,
``RESAMPLES`` are drawn."""
_BLOCK: Final = 4_000_000
"""Draws that are held at a time."""


@dataclass(frozen=True)
class Interval:
    """A figure and where it is with 95 % confidence.

    Attributes:
        value: As measured.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much better a subject is than the first one, on the same questions.

    Attributes:
        value: Mean over the clusters.
        low: Lower end of the paired bootstrap's interval.
        high: Upper end.
        p: Of the paired sign-flip test: the share of ways to swap the two subjects row by row that
            give as large a difference.
        within_noise: The interval holds 0, or the test finds as much by chance in 5 % or more. Few
            rows that all changed alike have an interval of no width; the test knows better.
    """

    value: float
    low: float
    high: float
    p: float
    within_noise: bool


def share(scores: Sequence[Sequence[bool]]) -> Interval:
    """Return the share of right answers: Wilson's interval, a bootstrap's where rows have several.

    Args:
        scores: By cluster, the verdicts on its answers; each has at least one.
    """
    if all(len(one) == 1 for one in scores):
        return _wilson(sum(one[0] for one in scores), len(scores))
    means = np.array([np.mean(one) for one in scores], dtype=np.float64)
    low, high = _bootstrap(means)
    if low == high:  # all rows alike: nothing to resample, and no proof that all rows ever are
        bound = _wilson(round(float(means.mean()) * len(means)), len(means))
        low, high = min(low, bound.low), max(high, bound.high)
    return Interval(float(means.mean()), low, high)


def difference(ours: Sequence[Sequence[bool]], first: Sequence[Sequence[bool]]) -> Difference:
    """Return the paired difference ``ours - first``, cluster by cluster.

    Args:
        ours: By cluster, the verdicts on a subject's answers.
        first: Those on the first subject's, of the same clusters in the same order.
    """
    pairs = zip(ours, first, strict=True)
    deltas = np.array([np.mean(a) - np.mean(b) for a, b in pairs], dtype=np.float64)
    low, high = _bootstrap(deltas)
    p = _sign_flips(deltas)
    noise = low <= 0 <= high or p >= 1 - LEVEL
    return Difference(float(deltas.mean()), low, high, p, noise)


def pass_at(k: int, scores: Sequence[Sequence[bool]]) -> float:
    """Return the chance that one of ``k`` answers to a question is right, without bias.

    ``1 - C(n - c, k) / C(n, k)`` for c right of n, mean over the questions (Chen et al., 2021,
    arXiv 2107.03374). ``1 - (1 - c/n)^k`` would be too low.

    Args:
        k: At most the answers to each question.
        scores: By question, the verdicts on its answers.
    """
    found = []
    for one in scores:
        n, right = len(one), sum(one)
        if k > n:
            raise ValueError(f"pass@{k} needs {k} answers to each question, there are {n}")
        found.append(1 - math.comb(n - right, k) / math.comb(n, k))
    return math.fsum(found) / len(found)


def _wilson(right: int, total: int) -> Interval:
    rate = wilson(right, total)
    assert rate is not None, "a suite has questions"
    return Interval(rate.value, rate.low, rate.high)


def _bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentiles of the mean of resampled clusters."""
    rng = np.random.default_rng(_SEED)
    n, means = len(values), []
    rows = max(1, min(RESAMPLES, _BLOCK // n))
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(0, n, size=(min(rows, RESAMPLES - start), n))
        means.append(values[drawn].mean(axis=1))
    ends = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(ends[0]), float(ends[1])


def _sign_flips(deltas: NDArray[np.float64]) -> float:
    """Return the two-sided p of the mean difference where either subject could be the other."""
    moved = deltas[deltas != 0]
    if not len(moved):
        return 1.0
    if np.allclose(abs(moved), abs(moved[0]), rtol=1e-9, atol=0):
        return _mcnemar(int((moved > 0).sum()), len(moved))
    observed = abs(moved.sum()) - 1e-9
    if len(moved) <= _MOST_EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(moved))))
        return float((abs(signs @ moved) >= observed).mean())
    rng, hits = np.random.default_rng(_SEED), 0
    rows = max(1, min(RESAMPLES, _BLOCK // len(moved)))
    for start in range(0, RESAMPLES, rows):
        size = (min(rows, RESAMPLES - start), len(moved))
        signs = rng.integers(0, 2, size=size) * 2.0 - 1
        hits += int((abs(signs @ moved) >= observed).sum())
    return (hits + 1) / (RESAMPLES + 1)


def _mcnemar(better: int, changed: int) -> float:
    """Return the p of all ``2^n`` signs where every cluster that differs does by the same amount.

    It is McNemar's exact one: the two tails of a binomial distribution, in whole numbers.
    """
    ways = tail = 1
    for k in range(min(better, changed - better)):
        ways = ways * (changed - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**changed)
