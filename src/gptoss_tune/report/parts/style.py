"""The frame of every page: one style sheet, light, dark and on paper, and the figures' colours.

Colours are those of Okabe and Ito, which people with any kind of colour vision tell apart, darkened
on white and lightened on black to a contrast of 3 : 1 at least; a second mark (dashes, dots) goes
with each. Maps use one hue per direction and no colour for the even value, so that the same picture
stands on white, on black and on paper.
"""

from __future__ import annotations

import re
from typing import Final

BLUE: Final[tuple[int, int, int]] = (31, 119, 199)
"""Of maps: large, or less than even."""
ORANGE: Final[tuple[int, int, int]] = (224, 122, 16)
"""Of maps: more than even."""

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5c6470; --line: #d9dde3;
  --ground: #f6f7f9; --card: #ffffff; --grid: #e8ebef; --bad: #b3261e; --good: #14773f;
  --c0: #1d2129; --c1: #0a6cb0; --c2: #b96b00; --c3: #00815f; --c4: #a94f86; --c5: #c24a00;
  --c6: #3d8fc4; --c7: #7d7a00; --train: 22 135 80; --chip: #6a3fb5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #a0a8b4; --line: #343a44;
  --ground: #14171c; --card: #1c2027; --grid: #2a303a; --bad: #ff8a80; --good: #5fd39a;
  --c0: #e6e8ec; --c1: #6cb7ee; --c2: #f0a92e; --c3: #35c99c; --c4: #e09ac4; --c5: #ff8a4c;
  --c6: #9ad4f7; --c7: #d6d04a; --train: 64 196 128; --chip: #c3a6ff; } }
@media print { :root { color-scheme: light; --ground: #fff; --card: #fff; --ink: #000;
  --soft: #444; --line: #bbb; --grid: #ddd; --c0: #000; --c1: #0a6cb0; --c2: #b96b00;
  --c3: #00815f; --c4: #a94f86; --c5: #c24a00; --c6: #3d8fc4; --c7: #7d7a00; --bad: #b3261e;
  --good: #14773f; --train: 22 135 80; --chip: #6a3fb5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 2rem 1.25rem 4rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .3rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem; }
p { margin: .3rem 0 .6rem; max-width: 52rem; }
.soft, p.note, figcaption { color: var(--soft); }
.status { display: inline-block; font-size: .8rem; font-weight: 600; padding: .1rem .55rem;
  border: 1px solid currentColor; border-radius: 1rem; vertical-align: .25rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
nav { font-size: .9rem; margin: .5rem 0 0; } nav a { margin-right: .9rem; }
a { color: var(--c1); }
footer { color: var(--soft); margin-top: 2.5rem; font-size: .85rem; }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr));
  gap: .6rem; margin: 1.1rem 0; }
.tiles.narrow { grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .55rem .65rem .6rem; font-size: .82rem; color: var(--soft); }
.tile b { display: block; color: var(--ink); font-size: 1.05rem; line-height: 1.45;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tile.bad b { color: var(--bad); }
.scroll + .figures { margin-top: 1.2rem; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .9rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; padding: .75rem .8rem .6rem; min-width: 0; }
figure h3 { margin: 0 0 .1rem; font-size: .95rem; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figcaption { font-size: .82rem; line-height: 1.4; margin-top: .35rem; }
svg text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: var(--soft);
  font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .axis { stroke: var(--line); stroke-width: 1; }
svg path { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .bar { fill: var(--c1); }
svg .raw { stroke-width: 1; opacity: .38; }
svg image { image-rendering: pixelated; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .95rem; font-size: .82rem; margin: .1rem 0;
  color: var(--ink); padding: 0; list-style: none; }
.legend svg { display: inline-block; width: 26px; height: 10px; margin-right: .35rem; }
details { font-size: .85rem; margin-top: .35rem; }
summary { cursor: pointer; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .88rem; }
th, td { text-align: right; padding: .22rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th:first-child, td.word, th.word { text-align: left; overflow-wrap: anywhere; min-width: 5.5rem; }
thead th { font-weight: 600; color: var(--soft); } tbody th { font-weight: 400; }
details table { width: auto; min-width: 60%; }
ul.lines { margin: .3rem 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
.box { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .5rem .9rem .7rem; margin: .6rem 0; }
.box.bad { border-color: var(--bad); color: var(--ink); }
.box.bad strong { color: var(--bad); }
article h3 { overflow-wrap: anywhere; margin: .3rem 0 .5rem; }
.sides { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.2rem; }
.about, .side ul.lines { font-size: .82rem; }
.said { border-left: 3px solid var(--line); padding: .05rem 0 .05rem .6rem; margin: .35rem 0; }
.said.analysis { border-color: var(--c1); } .said.commentary { border-color: var(--c2); }
.said.final { border-color: var(--c3); }
.said.call { border-left: 3px double var(--chip); background: var(--ground); }
.said.call b { color: var(--chip); }
.said.result { border-left: 3px dotted var(--chip); background: var(--ground);
  margin-left: 1.4rem; }
.said.asked { border-color: var(--c0); }
.said b { font-size: .78rem; color: var(--soft); font-weight: 600; display: block; }
.words { font: 13px/1.55 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  max-height: 24rem; overflow-y: auto; }
.message { display: grid; grid-template-columns: 8.5rem minmax(0, 1fr); gap: .8rem;
  padding: .45rem 0; border-top: 1px solid var(--line); }
.message:first-of-type { border-top: 0; }
.who { color: var(--soft); font-size: .82rem; overflow-wrap: anywhere; }
.who b { display: block; color: var(--ink); }
.tokens { font: 13.5px/1.65 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.tokens span { border-radius: .2rem; box-shadow: inset 0 -1px rgb(128 128 128 / .28); }
.tokens .special { color: var(--chip); border: 1px solid currentColor; padding: 0 .2rem;
  margin: 0 .1rem; font-size: .86em; box-shadow: none; }
.weights span { padding: .05rem .4rem; margin-right: .6rem; border-radius: .2rem; }
@media (max-width: 46rem) {
  .message { grid-template-columns: minmax(0, 1fr); gap: .1rem; }
  body { padding: 1.2rem .8rem 3rem; }
  .figures, .sides { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tile b { font-size: 1.1rem; }
  svg text { font-size: 16px; } svg .minor { display: none; }
  th, td { padding: .22rem .4rem; }
}
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; }
  .words { max-height: none; } figure, .tile { break-inside: avoid; }
  nav, summary { display: none; }
  h2, h3 { break-after: avoid; } }
"""


def colour(place: int) -> str:
    """Return the colour of the n-th of several lines, as CSS."""
    return f"var(--c{1 + place % 7})"


DASHES: Final = ("", "7 4", "2 4", "9 3 2 3", "12 4", "4 2", "1 3")
"""The second mark of the n-th line."""


SVG_STYLE: Final = "\n".join(re.findall(r"^svg [^}]*}", STYLE.partition("@media (max")[0], re.M))
"""Of a drawing alone."""


def html_page(title: str, body: str, css: str = "") -> str:
    """Return a whole page that needs nothing from elsewhere.

    Args:
        title: As HTML.
        body: As HTML.
        css: Of this page alone, after the sheet of all pages.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}{css}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def on_white(css: str) -> str:
    """Return CSS with the colours of a white page written out, for a picture without a sheet."""
    for name, value in re.findall(r"(--[a-z0-9]+): ([^;]+);", STYLE.partition("@media")[0]):
        css = css.replace(f"var({name})", value)
    return css
