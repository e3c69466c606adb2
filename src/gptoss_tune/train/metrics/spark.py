"""A curve in one line of text: eighths of blocks, the highest value a full one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"


def spark(values: Sequence[float], width: int) -> str:
    """Return ``values`` as blocks in at most ``width`` columns.

    More values than columns are averaged column by column, so the whole curve is shown and not its
    end. The scale is from the lowest to the highest column; what is no number is a space.

    Args:
        values: At least one.
        width: Columns, at least 1.
    """
    columns = [_mean(part) for part in _parts(values, width)]
    finite = [value for value in columns if math.isfinite(value)]
    if not finite:
        return " " * len(columns)
    low, span = min(finite), max(finite) - min(finite)
    return "".join(_block(value, low, span) for value in columns)


def _block(value: float, low: float, span: float) -> str:
    if not math.isfinite(value):
        return " "
    return BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] if span else BLOCKS[0]


def _parts(values: Sequence[float], width: int) -> list[Sequence[float]]:
    count = min(width, len(values))
    edges = [len(values) * index // count for index in range(count + 1)]
    return [values[low:high] for low, high in itertools.pairwise(edges)]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
