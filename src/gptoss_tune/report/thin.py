"""Fewer points for the same picture: a curve wider than its pixels, kept with its extremes.

Steps are cut into as many equal pieces as can be seen, and each keeps its lowest and its highest
point in their order, so no spike is lost; every n-th point would lose nearly all of them, and means
would lower them. The mean over a window is drawn beside it, as a line of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

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
