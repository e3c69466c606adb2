"""Words and numbers of a page: escaped, shortened, with their units.

Everything that was not written in this room goes through ``text``: names, paths, recipes, dataset
and model texts are all hostile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from gptoss_tune.display import visible

LONGEST_TEXT = 4000
"""Characters of one text that a page shows; the rest is counted."""
LARGEST_NUMBER, SMALLEST_NUMBER = 1e39, 1e-46
"""Beyond what fp32 holds nothing was measured, and sums, squares and shares would overflow."""


def text(value: object, longest: int = LONGEST_TEXT) -> str:
    """Return any value as HTML text: invisible characters spelled out, escaped, cut."""
    whole = str(value)
    shown = escape(visible(whole[:longest]), quote=True)
    cut = len(whole) - longest
    return shown if cut <= 0 else f'{shown} <i class="soft">and {cut:,} more characters</i>'


def number(value: object) -> float | None:
    """Return a finite number, or ``None`` for anything else that a damaged file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not abs(value) <= LARGEST_NUMBER:
        return None
    return float(value) if abs(value) >= SMALLEST_NUMBER else 0.0


def figure(value: float | None, digits: int = 4) -> str:
    """Return a number with ``digits`` significant digits, as plain as it can be written."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.{max(digits - 2, 0)}e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def count(value: float | None) -> str:
    """Return a whole number with separators."""
    return "–" if value is None else f"{round(value):,}"


def size(nbytes: float | None) -> str:
    """Return bytes with a unit."""
    if nbytes is None:
        return "–"
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(nbytes) >= scale:
            return f"{nbytes / scale:,.2f} {unit}"
    return f"{nbytes:,.0f} bytes"


def duration(seconds: float | None) -> str:
    """Return a time in the two units that matter."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, css: str = "", words: int = 1
) -> str:
    """Return an HTML table of cells that are HTML already.

    Args:
        head: Headings, as HTML.
        rows: Cells, as HTML; a row may be shorter.
        css: Class of the table.
        words: Columns from the left that hold words and not figures.
    """
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{cell}</th>'
            if place == 0
            else f"<td{' class=word' if place < words else ''}>{cell}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    heads = "".join(
        f"<th scope=col{' class=word' if place < words else ''}>{cell}</th>"
        for place, cell in enumerate(head)
    )
    named = f' class="{css}"' if css else ""
    return (
        f'<div class="scroll"><table{named}><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def tiles(figures: Iterable[tuple[str, str, bool]], *, css: str = "tiles") -> str:
    """Return headline figures in boxes: value and label as HTML, and whether it is bad news."""
    boxes = "".join(
        f'<div class="tile{" bad" if bad else ""}"><b>{value}</b>{label}</div>'
        for value, label, bad in figures
    )
    return f'<div class="{css}">{boxes}</div>'
