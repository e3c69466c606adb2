"""The time of a training on this CPU, from a plan's operations and a measured matrix product.

A machine without a GPU can train a tiny base and nothing larger, and somebody who does not know it
should hear it before tens of GB are downloaded. The estimate errs to the short side: all cores are
counted, though a run without a GPU takes one thread unless told otherwise; the rate is that of the
best of a few products of fp32 matrices, of which the share is assumed that a plan assumes of a GPU;
nothing but training is counted. So a run that is refused would really take that long, and longer.
A table of processors was the alternative: it needs their clock and vector width, and is soon old.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from gptoss_tune.errors import MachineError
from gptoss_tune.plan.flops import Work

LONGEST_HOURS = 24.0
"""A run that takes longer on a CPU is refused, unless it is asked for."""
LEAST_TOKENS = 100_000
"""Taken where the data's size is not known before a download: about a hundred conversations."""
_SIDE, _TIMES = 768, 5


@dataclass(frozen=True)
class CpuTime:
    """How long a training takes on a CPU, at least.

    Attributes:
        rate: FLOP/s of a product of fp32 matrices on all cores.
        efficiency: Share of it that a training is taken to reach.
        flops: Of one token.
        tokens: Of the whole run; ``None`` where nothing tells.
    """

    rate: float
    efficiency: float
    flops: float
    tokens: int | None

    @property
    def hours(self) -> float:
        """Hours of the run, or of ``LEAST_TOKENS`` where its tokens are not known."""
        tokens = LEAST_TOKENS if self.tokens is None else self.tokens
        return tokens * self.flops / (self.rate * self.efficiency) / 3600

    @property
    def too_long(self) -> bool:
        """Whether it is more than ``LONGEST_HOURS``."""
        return self.hours > LONGEST_HOURS

    def __str__(self) -> str:
        """Return the sentence: ``No GPU here: this would take at least 12 days on ...``."""
        days = self.hours / 24
        long = f"{days:,.0f} days" if days >= 2 else f"{self.hours:,.1f} hours"
        what = "this" if self.tokens is not None else f"every {LEAST_TOKENS:,} tokens"
        tokens = "" if self.tokens is None else f"{self.tokens:,} tokens, "
        return (
            f"No GPU here: {what} would take at least {long} on this CPU ({tokens}"
            f"{self.flops / 1e9:,.1f} GFLOP a token; {self.efficiency:.0%} of the "
            f"{self.rate / 1e9:,.0f} GFLOP/s that it multiplies matrices at)"
        )


def cpu_time(work: Work, rate: float | None = None) -> CpuTime:
    """Return how long the training of a plan takes on a CPU, at least.

    Args:
        work: ``Plan.work``: operations, tokens, and the share of the rate that is assumed.
        rate: FLOP/s; ``None``: measured here, in 0.2 s.
    """
    return CpuTime(rate or measured_rate(), work.efficiency, work.flops.total, work.tokens)


def refuse_days_on_a_cpu(work: Work, rate: float | None = None) -> None:
    """Refuse a training that takes over a day on this CPU; to be asked where there is no GPU.

    Args:
        work: As in ``cpu_time``.
        rate: As in ``cpu_time``.

    Raises:
        MachineError: It does, with what to do.
    """
    found = cpu_time(work, rate)
    if found.too_long:
        raise MachineError(
            f"{found}; train on a machine with a GPU (`gptoss-tune plan` says which is enough), "
            "see the whole way on the tiny base with `gptoss-tune demo`, or add --on-cpu to train "
            "here all the same"
        )


def measured_rate() -> float:
    """Return the FLOP/s of the fastest of a few products of fp32 matrices, on NumPy's threads."""
    import numpy as np

    matrix = np.full((_SIDE, _SIDE), 0.5, dtype=np.float32)
    best = float("inf")
    for _ in range(_TIMES):
        started = time.perf_counter()
        _ = matrix @ matrix
        best = min(best, time.perf_counter() - started)
    return 2.0 * _SIDE**3 / best
