"""Line charts as SVG, drawn here: axes at round numbers, each described for who cannot see it.

Everything lies in a view box of 560 x 268 that is scaled to its column; on narrow screens the style
sheet enlarges the letters and drops every second tick, so the text stays readable at 400 pixels.
A plotting library was the alternative: its pages carry a script of megabytes, or pictures that know
neither dark nor paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from gptoss_tune.report import thin
from gptoss_tune.report.text import count, figure, table, text

WIDTH: Final = 560
HEIGHT: Final = 268
LEFT: Final = 58
RIGHT: Final = 14
TOP: Final = 28
BOTTOM: Final = 40
_MOST_ROWS = 12


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: In the legend.
        series: Values by step; ``None`` where there is none.
        colour: As CSS.
        dash: Of the stroke; empty for a solid line.
        dots: Mark every point; for series with few.
        noisy: Draw a mean through many points.
    """

    name: str
    series: Sequence[tuple[int, float | None]]
    colour: str
    dash: str = ""
    dots: bool = False
    noisy: bool = True


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    unit: str,
    caption: str = "",
    logarithmic: bool = False,
    from_zero: bool = False,
    level: tuple[float, str] | None = None,
) -> str:
    """Return a figure of lines over steps; empty when no line has a point.

    Args:
        title: Heading, plain text.
        lines: What is drawn, first ones below.
        unit: Of the values, for the axis and the table.
        caption: What to know, plain text.
        logarithmic: Powers of ten at equal distances; values of 0 and less are left out.
        from_zero: The axis begins at 0.
        level: A value to draw a horizontal line at, and its name.
    """
    if logarithmic:
        lines = [
            replace(one, series=[p for p in one.series if p[1] is None or p[1] > 0])
            for one in lines
        ]
        level = level if level and level[0] > 0 else None
    curves = [thin.curve(line.series, noisy=line.noisy) for line in lines]
    shown = [(line, found) for line, found in zip(lines, curves, strict=True) if found.points]
    if not shown:
        return ""
    points = [point for _, found in shown for point in found.points]
    values = [value for _, value in points] + ([level[0]] if level else [])
    frame = Frame.around([step for step, _ in points], values, logarithmic, from_zero)
    drawn = [*frame.axes(unit)]
    if level:
        y = frame.y(level[0])
        drawn.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--soft)"'
            f' stroke-dasharray="3 3"/><text x="{WIDTH - RIGHT}" y="{y - 4:.1f}" '
            f'text-anchor="end">{text(level[1])}</text>'
        )
    for line, found in shown:
        drawn += _drawn(line, found, frame)
    return framed(
        title,
        "".join(drawn),
        description=_description([(line.name, line.series) for line, _ in shown], unit),
        legend=_legend([line for line, _ in shown]) if len(shown) > 1 else "",
        caption=_caption(caption, [found for _, found in shown]),
        numbers=_numbers([line for line, _ in shown], unit),
    )


def framed(
    title: str,
    drawing: str,
    *,
    description: str,
    legend: str = "",
    caption: str = "",
    numbers: str = "",
    height: int = HEIGHT,
) -> str:
    """Return a figure around a drawing of ``WIDTH x height``.

    Args:
        title: Plain text.
        drawing: SVG.
        description: Plain text that stands for the picture.
        legend: HTML.
        caption: Plain text.
        numbers: HTML of a table, folded away.
        height: Of the view box.
    """
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    folded = f"<details><summary>numbers</summary>{numbers}</details>" if numbers else ""
    return (
        f'<figure><h3>{text(title)}</h3>{legend}<svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{text(f"{title}. {description}")}"><title>{text(title)}</title>'
        f"<desc>{text(description)}</desc>{drawing}</svg>{below}{folded}</figure>"
    )


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
        return [*drawn, *step_axis(self, HEIGHT - BOTTOM), _unit(unit)]


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


def _unit(unit: str) -> str:
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


def _drawn(line: Line, found: thin.Curve, frame: Frame) -> list[str]:
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    stroke = f'stroke="{line.colour}"'
    drawn = []
    if found.mean:
        drawn.append(f'<path class="raw" {stroke} d="{_path(found.points, frame)}"/>')
        drawn.append(f'<path {stroke}{dash} d="{_path(found.mean, frame)}"/>')
    else:
        drawn.append(f'<path {stroke}{dash} d="{_path(found.points, frame)}"/>')
    if line.dots or len(found.points) == 1:
        drawn += [
            f'<circle cx="{frame.x(step):.1f}" cy="{frame.y(value):.1f}" r="2.6" '
            f'fill="{line.colour}"/>'
            for step, value in found.points[: 2 * thin.MOST_PIECES]
        ]
    return drawn


def _path(points: Sequence[tuple[int, float]], frame: Frame) -> str:
    parts = (f"{frame.x(step):.1f} {frame.y(value):.1f}" for step, value in points)
    return "M" + "L".join(parts)


def _legend(lines: Sequence[Line]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 26 10" aria-hidden="true"><path d="M1 5H25" stroke="{line.colour}"'
        + (f' stroke-dasharray="{line.dash}"' if line.dash else "")
        + f"/></svg>{text(line.name)}</li>"
        for line in lines
    )
    return f'<ul class="legend">{items}</ul>'


def _description(lines: Sequence[tuple[str, Sequence[tuple[int, float | None]]]], unit: str) -> str:
    parts = []
    for name, series in lines:
        points = [(step, value) for step, value in series if value is not None]
        low, high = (f(value for _, value in points) for f in (min, max))
        parts.append(
            f"{name}: {figure(points[0][1])} at step {points[0][0]:,}, {figure(points[-1][1])} at "
            f"step {points[-1][0]:,}, from {figure(low)} to {figure(high)} {unit}"
        )
    return "; ".join(parts)


def _caption(caption: str, curves: Sequence[thin.Curve]) -> str:
    notes = [caption] if caption else []
    with_mean = [found for found in curves if found.mean]
    if with_mean:
        window = max(found.window for found in with_mean)
        notes.append(f"Strong line: mean of the last {window:,} logged values; faint: all of them")
        if any(found.total > 2 * thin.MOST_PIECES for found in curves):
            notes[-1] += ", as the lowest and highest of each of "
            notes[-1] += f"{thin.MOST_PIECES} pieces of the run"
        notes[-1] += "."
    gaps = sorted({step for found in curves for step in found.gaps})
    if gaps:
        few = ", ".join(f"{step:,}" for step in gaps[:5]) + (" ..." if len(gaps) > 5 else "")
        steps = "logged step" if len(gaps) == 1 else "logged steps"
        notes.append(f"Not finite at {count(len(gaps))} {steps}: {few}.")
    return " ".join(notes)


def _numbers(lines: Sequence[Line], unit: str) -> str:
    steps = sorted({step for line in lines for step, value in line.series if value is not None})
    if len(steps) > _MOST_ROWS:
        last = len(steps) - 1
        steps = [steps[round(n * last / (_MOST_ROWS - 1))] for n in range(_MOST_ROWS)]
    values = [dict(line.series) for line in lines]
    head = ["step", *(f"{text(line.name)} ({text(unit)})" for line in lines)]
    return table(head, [[f"{s:,}", *(figure(v.get(s)) for v in values)] for s in steps])
