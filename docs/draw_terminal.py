"""A captured terminal as a page: ``draw_terminal.py SCREEN.ansi PAGE.html`` prints its size.

The screen is what ``tmux capture-pane -e`` writes, text with the escapes of its colours.
"""

from __future__ import annotations

import html
import sys
from pathlib import Path

from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

_WIDTH, _HEIGHT = 9.63, 21  # of a character at 16 px, in px
_MARGIN = 18
_COLOURS = {1: "#e06c75", 2: "#98c379", 3: "#e5c07b", 6: "#56b6c2"}  # by ANSI's numbers
_INK, _PAPER, _DIM = "#dcdfe4", "#1e2127", "#7f8691"


def main() -> None:
    """Write the page, print width and height in px."""
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").rstrip().split("\n")
    console = Console(width=500, color_system="truecolor", force_terminal=True)
    drawn, widest = [], 0
    for line in lines:
        text = Text.from_ansi(line)
        widest = max(widest, text.cell_len)
        segments = text.render(console)
        drawn.append("".join(map(_span, segments)))
    body = "\n".join(drawn)
    page = f"""<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; background: {_PAPER}; color: {_INK}; padding: {_MARGIN}px }}
pre {{ margin: 0; font: 16px/{_HEIGHT}px "DejaVu Sans Mono", monospace }}
</style><pre>{body}</pre>
"""
    Path(sys.argv[2]).write_text(page, encoding="utf-8")
    width = round(widest * _WIDTH) + 2 * _MARGIN
    sys.stdout.write(f"{width},{len(lines) * _HEIGHT + 2 * _MARGIN}\n")


def _span(segment: Segment) -> str:
    """Return a piece of a line with its colour."""
    text, style = html.escape(segment.text), segment.style or Style()
    rules = []
    if style.dim:
        rules.append(f"color: {_DIM}")
    elif style.color is not None:
        rules.append(f"color: {_COLOURS.get(style.color.number or 0, _INK)}")
    if style.bold:
        rules.append("font-weight: bold")
    return f'<span style="{"; ".join(rules)}">{text}</span>' if rules else text


if __name__ == "__main__":
    main()
