"""Where values lie in a drawing: axes at round numbers, and no more points than can be seen.

A curve that is wider than its pixels keeps its extremes: steps are cut into as many equal pieces as
can be seen, and each keeps its lowest and its highest point in their order, so no spike is lost;
every n-th point would lose nearly all of them, and means would lower them. The mean over a window
is drawn beside it, as a line of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from gptoss_tune.report.parts.text import figure, text

WIDTH: Final = 560
HEIGHT: Final = 268
LEFT: Final = 58
RIGHT: Final = 14
TOP: Final = 28
BOTTOM: Final = 40
"""Of the view box, and its margins around the values."""
MOST_PIECES = 300
"""Pieces of a curve; two points each."""
ENOUGH_FOR_A_MEAN = 150
"""Points from which a noisy curve gets a line of means; fewer can be followed by eye."""

Pair = tuple[int, float]


@dataclass(frozen=True)
class Curve:
    """A curve as it is drawn.

    Attributes:
        points: The points that are drawn.
        mean: The running mean, with ``MOST_PIECES`` points at most; empty for a short curve.
        window: Points that the mean is over.
        total: Points that there are.
        gaps: Steps without a finite value.
    """

    points: list[Pair]
    mean: list[Pair]
    window: int
    total: int
    gaps: list[int]


def curve(series: Sequence[tuple[int, float | None]], *, noisy: bool = True) -> Curve:
    """Return a series made thin enough to draw; only a noisy one gets a mean, which lags behind."""
    points = [(step, value) for step, value in series if value is not None]
    gaps = [step for step, value in series if value is None]
    if not noisy or len(points) < ENOUGH_FOR_A_MEAN:
        return Curve(extremes(points), [], 1, len(points), gaps)
    window = max(5, len(points) // 50)
    return Curve(extremes(points), running_mean(points, window), window, len(points), gaps)


def extremes(points: Sequence[Pair], pieces: int = MOST_PIECES) -> list[Pair]:
    """Return the lowest and highest point of each of ``pieces`` equal pieces, in order."""
    if len(points) <= 2 * pieces:
        return list(points)
    kept: list[Pair] = []
    for number in range(pieces):
        piece = points[number * len(points) // pieces : (number + 1) * len(points) // pieces]
        low = min(piece, key=lambda point: point[1])
        high = max(piece, key=lambda point: point[1])
        kept += sorted({low, high})
    for end in (points[0], points[-1]):
        if end not in kept:
            kept.append(end)
    return sorted(kept)


def running_mean(points: Sequence[Pair], window: int) -> list[Pair]:
    """Return the mean of the last ``window`` points (of fewer at the start), evenly spread."""
    count = min(len(points), MOST_PIECES)
    places = sorted({round(n * (len(points) - 1) / max(count - 1, 1)) for n in range(count)})
    means = []
    for place in places:
        # Each by itself: differences of running sums lose small values behind a large one.
        last = points[max(0, place + 1 - window) : place + 1]
        means.append((points[place][0], fmean(value for _, value in last)))
    return means


@dataclass(frozen=True)
class Frame:
    """Where values lie in the view box.

    Attributes:
        steps: First and last step.
        low: Lowest value of the axis (its logarithm where the axis is logarithmic).
        high: Highest.
        ticks: Values with a mark, and their texts.
        logarithmic: Powers of ten at equal distances.
    """

    steps: tuple[int, int]
    low: float
    high: float
    ticks: list[tuple[float, str]]
    logarithmic: bool

    @staticmethod
    def around(
        steps: Sequence[int], values: Sequence[float], logarithmic: bool, from_zero: bool
    ) -> Frame:
        """Return the frame that holds all values."""
        low, high = min(values), max(values)
        ends = min(steps), max(steps)
        if logarithmic:
            low, high = math.log10(low), math.log10(high)
            if high - low >= 1.2:
                low, high = math.floor(low + 1e-9), math.ceil(high - 1e-9)
                stride = max(1, round((high - low) / 5))
                powers = range(int(low), int(high) + 1, stride)
                return Frame(ends, low, high, [(p, _power(p)) for p in powers], True)
            ticks = _ticks_within_a_decade(low, high)
            low, high = min(low, math.log10(ticks[0])), max(high, math.log10(ticks[-1]))
            return Frame(ends, low, high, [(math.log10(t), f"{t:,.12g}") for t in ticks], True)
        if from_zero:
            low, high = min(low, 0.0), max(high, 0.0)
        ticks = _round_ticks(low, high)
        low, high = min(ticks[0], low), max(ticks[-1], high)
        return Frame(ends, low, high, list(zip(ticks, tick_texts(ticks), strict=True)), False)

    def x(self, step: float) -> float:
        """Return a step's place; a single one stands in the middle."""
        first, last = self.steps
        share = (step - first) / (last - first) if last > first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return a value's place."""
        scaled = math.log10(value) if self.logarithmic else value
        return self._place(scaled)

    def _place(self, scaled: float) -> float:
        share = (scaled - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def axes(self, unit: str) -> list[str]:
        """Return grid, ticks and their texts."""
        drawn = []
        for value, word in self.ticks:
            y = self._place(value)
            drawn.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{word}</text>'
            )
        return [*drawn, *step_axis(self, HEIGHT - BOTTOM), unit_text(unit)]


def step_axis(frame: Frame, bottom: float) -> list[str]:
    """Return the axis of steps along ``bottom``."""
    ticks = _step_ticks(*frame.steps)
    drawn = [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom:.1f}" y2="{bottom:.1f}"/>'
    ]
    for place, step in enumerate(ticks):
        minor = ' class="minor"' if place % 2 else ""
        x = frame.x(step)
        drawn.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom:.1f}" '
            f'y2="{bottom + 4:.1f}"/><text{minor} x="{x:.1f}" y="{bottom + 18:.1f}" '
            f'text-anchor="middle">{step:,}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(
        f'<text x="{middle:.0f}" y="{bottom + 36:.1f}" text-anchor="middle">optimizer step</text>'
    )
    return drawn


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Return the texts of ticks at equal distances, all with as many decimals as they need."""
    largest = max(abs(tick) for tick in ticks)
    if largest and (largest < 1e-3 or largest >= 1e6):
        return [figure(tick, 3) for tick in ticks]
    gap = ticks[1] - ticks[0] if len(ticks) > 1 else largest or 1.0
    places = max(0, -math.floor(math.log10(gap) + 1e-9))
    if round(gap * 10**places, 6) % 1:  # 2.5 and its like need one more
        places += 1
    return [f"{tick:,.{places}f}" for tick in ticks]


def unit_text(unit: str) -> str:
    """Return the unit of the values, above their axis."""
    return f'<text x="0" y="13">{text(unit)}</text>'


def _round_ticks(low: float, high: float) -> list[float]:
    """Return 3 to 7 round values that span ``low`` to ``high``."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, high + spread
    gap = _gap((high - low) / 4)
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [number * gap for number in range(first, last + 1)]


def _ticks_within_a_decade(low: float, high: float) -> list[float]:
    """Return round values for a logarithmic axis from ``10**low`` to ``10**high``, spread evenly.

    Multiples of 1, 2 and 5 where three of them lie in it; equal distances, which crowd at the
    upper end of a wide range, for less.
    """
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [float(f"{m}e{power}") for power in powers for m in (1, 2, 5)]
    inside = [tick for tick in found if low - 1e-9 <= math.log10(tick) <= high + 1e-9]
    return inside if len(inside) >= 3 else [t for t in _round_ticks(10**low, 10**high) if t > 0]


def _gap(rough: float) -> float:
    """Return the next round number."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)


def _step_ticks(first: int, last: int) -> list[int]:
    if last == first:
        return [first]
    gap = max(1, round(_gap((last - first) / 6)))
    ticks = list(range(-(-first // gap) * gap, last + 1, gap))
    return ticks or [first, last]


def _power(exponent: int) -> str:
    return figure(10.0**exponent, 1) if -3 <= exponent <= 5 else f"1e{exponent}"
