"""Maps of layers by steps or by experts: one pixel a cell, in a PNG inside the page.

36 layers x 128 experts are 4,608 cells: as rectangles 300 KB of SVG a map, as a picture 5 KB. A
cell is a hue with an opacity, so a map has no ground of its own and stands on white and on black.

L layers, C columns.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptoss_tune.report.parts.axes import LEFT, RIGHT, TOP, WIDTH
from gptoss_tune.report.parts.plot import framed
from gptoss_tune.report.parts.style import BLUE, ORANGE
from gptoss_tune.report.parts.text import text

Cell = float | None
Pixel = tuple[int, int, int, int]
NOTHING: Pixel = (128, 128, 128, 60)
"""A cell without a value."""


@dataclass(frozen=True)
class Scale:
    """How a value becomes a colour.

    Attributes:
        place: From a value to -1 (blue), 0 (no colour), 1 (orange), or 0 to 1 (one hue).
        ends: Texts under the legend's two ends.
        middle: Text under its middle; empty for a scale of one hue.
        signed: Whether it has two hues.
    """

    place: Callable[[float], float]
    ends: tuple[str, str]
    middle: str = ""
    signed: bool = False

    def pixel(self, value: Cell) -> Pixel:
        """Return a cell's colour."""
        if value is None:
            return NOTHING
        share = max(-1.0, min(1.0, self.place(value)))
        hue = ORANGE if share > 0 and self.signed else BLUE
        return (*hue, round(255 * abs(share)))


def heat_map(
    title: str,
    rows: Sequence[Sequence[Cell]],
    scale: Scale,
    *,
    columns: Sequence[tuple[float, str]],
    across: str,
    description: str,
    caption: str,
    numbers: str = "",
) -> str:
    """Return a figure of a map; empty without a cell.

    Args:
        title: Heading, plain text.
        rows: ``[L][C]``, layer 0 first, which is drawn at the bottom.
        scale: Colours.
        columns: Ticks along the lower edge: place from 0 to 1, and text.
        across: What the columns are, plain text.
        description: What stands for the picture, plain text.
        caption: What to know, plain text.
        numbers: HTML of a table.
    """
    if not rows or not rows[0]:
        return ""
    tall = max(120, min(230, 7 * len(rows)))
    across_px = WIDTH - LEFT - RIGHT
    bottom = TOP + tall
    drawn = [
        f'<rect x="{LEFT}" y="{TOP}" width="{across_px}" height="{tall}" fill="none" '
        'stroke="var(--line)"/>'
        f'<image x="{LEFT}" y="{TOP}" width="{across_px}" height="{tall}" '
        f'preserveAspectRatio="none" href="{picture(rows, scale)}"/>'
    ]
    for layer in _spread(len(rows)):
        y = bottom - (layer + 0.5) * tall / len(rows)
        drawn.append(f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{layer}</text>')
    drawn.append('<text x="0" y="13">layer</text>')
    for place, (share, word) in enumerate(columns):
        minor = ' class="minor"' if place % 2 else ""
        drawn.append(
            f'<text{minor} x="{LEFT + share * across_px:.1f}" y="{bottom + 17}" '
            f'text-anchor="middle">{text(word)}</text>'
        )
    drawn.append(
        f'<text x="{LEFT + across_px / 2:.0f}" y="{bottom + 35}" text-anchor="middle">'
        f"{text(across)}</text>"
    )
    drawn.append(_key(scale, bottom + 50))
    return framed(
        title,
        "".join(drawn),
        description=description,
        caption=caption,
        numbers=numbers,
        height=bottom + 82,
    )


def picture(rows: Sequence[Sequence[Cell]], scale: Scale) -> str:
    """Return a map as a data URL of a PNG, the last row on top."""
    lines = [b"\0" + b"".join(bytes(scale.pixel(cell)) for cell in row) for row in reversed(rows)]
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines), 9)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _spread(rows: int) -> list[int]:
    """Return the layers that get a text: all of a few, else about eight at equal distances."""
    gap = 1 if rows <= 8 else next(g for g in (2, 4, 5, 8, 10, 20, 50, 100, 1000) if rows / g <= 9)
    return list(range(0, rows, gap))


def _key(scale: Scale, top: int) -> str:
    """Return the legend: a bar of the scale's colours with its ends."""
    places = [-1 + 2 * n / 40 for n in range(41)] if scale.signed else [n / 40 for n in range(41)]
    left, width = WIDTH - RIGHT - 205, 5
    cells = []
    for number, share in enumerate(places):
        red, green, blue = ORANGE if share > 0 and scale.signed else BLUE
        cells.append(
            f'<rect x="{left + width * number}" y="{top}" width="{width}" height="9" '
            f'fill="rgb({red} {green} {blue})" fill-opacity="{abs(share):.3f}"/>'
        )
    edge = (
        f'<rect x="{left}" y="{top}" width="{width * 41}" height="9" fill="none" '
        'stroke="var(--line)"/>'
    )
    words = [(left, "start", scale.ends[0]), (left + width * 41, "end", scale.ends[1])]
    if scale.middle:
        words.append((left + width * 20, "middle", scale.middle))
    texts = "".join(
        f'<text x="{x}" y="{top + 24}" text-anchor="{anchor}">{text(word)}</text>'
        for x, anchor, word in words
    )
    return "".join(cells) + edge + texts
