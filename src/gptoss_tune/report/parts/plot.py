"""Charts as SVG, drawn here: axes at round numbers, each described for who cannot see it.

Everything lies in a view box of 560 x 268 that is scaled to its column; on narrow screens the style
sheet enlarges the letters and drops every second tick, so the text stays readable at 400 pixels.
A plotting library was the alternative: its pages carry a script of megabytes, or pictures that know
neither dark nor paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gptoss_tune.report.parts.axes import (
    HEIGHT,
    LEFT,
    MOST_PIECES,
    RIGHT,
    TOP,
    WIDTH,
    Curve,
    Frame,
    curve,
)
from gptoss_tune.report.parts.style import SVG_STYLE, on_white
from gptoss_tune.report.parts.text import count, figure, table, text

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
    holds: Sequence[float] = (),
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
        holds: Values that the axis holds, whatever is drawn.
    """
    drawing, shown = _drawing(lines, unit, logarithmic, from_zero, level, holds)
    if not shown:
        return ""
    return framed(
        title,
        drawing,
        description=_description([(line.name, line.series) for line, _ in shown], unit),
        legend=_legend([line for line, _ in shown]) if len(shown) > 1 else "",
        caption=_caption(caption, [found for _, found in shown]),
        numbers=_numbers([line for line, _ in shown], unit),
    )


def picture(line: Line, *, unit: str) -> str:
    """Return a chart of one line as an SVG file of its own, on white; empty without a point."""
    drawing, shown = _drawing([line], unit)
    if not shown:
        return ""
    described = text(_description([(line.name, line.series)], unit))
    whole = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -10 {WIDTH + 24} {HEIGHT + 20}" '
        f'role="img" aria-label="{described}"><style>{SVG_STYLE}</style>'
        f'<rect x="-12" y="-10" width="{WIDTH + 24}" height="{HEIGHT + 20}" fill="#fff"/>'
        f"{drawing}</svg>\n"
    )
    return on_white(whole)


def bars(title: str, counts: Sequence[tuple[str, int]], *, across: str, caption: str) -> str:
    """Return a figure of a histogram, a bar for each ``(label, count)``, the first on top.

    Args:
        title: Heading, plain text.
        counts: What is counted, as plain text, and how often.
        across: What the labels are, plain text.
        caption: What to know, plain text.
    """
    if not counts:
        return ""
    left, high = 120, 20
    most = max(1, *(number for _, number in counts))
    drawn = [f'<text x="0" y="13">{text(across)}</text>']
    for place, (label, number) in enumerate(counts):
        y = TOP + place * high
        width = (WIDTH - left - LEFT) * number / most
        drawn.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{text(label)}</text>'
            f'<rect class="bar" x="{left}" y="{y + 2}" width="{width:.1f}" height="{high - 5}" '
            f'rx="2"/><text x="{left + width + 7:.1f}" y="{y + 13}">{number:,}</text>'
        )
    return framed(
        title,
        "".join(drawn),
        description="; ".join(f"{label}: {number:,}" for label, number in counts),
        caption=caption,
        height=TOP + high * len(counts) + 4,
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


def _drawing(
    lines: Sequence[Line],
    unit: str,
    logarithmic: bool = False,
    from_zero: bool = False,
    level: tuple[float, str] | None = None,
    holds: Sequence[float] = (),
) -> tuple[str, list[tuple[Line, Curve]]]:
    """Return axes and lines as SVG, and the lines that have a point."""
    if logarithmic:
        lines = [
            replace(one, series=[p for p in one.series if p[1] is None or p[1] > 0])
            for one in lines
        ]
        level = level if level and level[0] > 0 else None
    curves = [curve(line.series, noisy=line.noisy) for line in lines]
    shown = [(line, found) for line, found in zip(lines, curves, strict=True) if found.points]
    if not shown:
        return "", []
    points = [point for _, found in shown for point in found.points]
    values = [*(value for _, value in points), *([level[0]] if level else []), *holds]
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
    return "".join(drawn), shown


def _drawn(line: Line, found: Curve, frame: Frame) -> list[str]:
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
            for step, value in found.points[: 2 * MOST_PIECES]
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


def _caption(caption: str, curves: Sequence[Curve]) -> str:
    notes = [caption] if caption else []
    with_mean = [found for found in curves if found.mean]
    if with_mean:
        window = max(found.window for found in with_mean)
        notes.append(f"Strong line: mean of the last {window:,} logged values; faint: all of them")
        if any(found.total > 2 * MOST_PIECES for found in curves):
            notes[-1] += ", as the lowest and highest of each of "
            notes[-1] += f"{MOST_PIECES} pieces of the run"
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
