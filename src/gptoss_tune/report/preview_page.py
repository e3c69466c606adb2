"""The preview as one self-contained HTML page: no script, no server, nothing from elsewhere.

Text of a data set is hostile, so every text goes through ``_text``, which spells out the invisible
and escapes the rest, and the page forbids scripts and connections to itself by a content security
policy as well. A page with a script that filters and folds was the alternative; ``<details>`` folds
without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from gptoss_tune.display import visible
from gptoss_tune.harmony.dataset.statistics import DataStatistics, Overlap, SplitStatistics, reasons
from gptoss_tune.harmony.render import Example, Span
from gptoss_tune.harmony.vocabulary import Vocabulary
from gptoss_tune.report.token_view import Piece, pieces

MOST_LISTED: Final = 50

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5c6470; --line: #d9dde3;
  --ground: #f6f7f9; --card: #ffffff; --train: 22 135 80; --bar: #3d7be0; --bad: #b3261e;
  --chip: #6a3fb5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #a0a8b4; --line: #343a44;
  --ground: #14171c; --card: #1c2027; --train: 64 196 128; --bar: #6ea2f5; --bad: #ff8a80;
  --chip: #c3a6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem 4rem; background: var(--ground);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem; }
p.note, .soft { color: var(--soft); }
a { color: var(--bar); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.bad b, .bad { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
th { font-weight: 600; color: var(--soft); }
.histogram { display: grid; grid-template-columns: auto 1fr auto; gap: .15rem .6rem;
  align-items: center; font-size: .85rem; font-variant-numeric: tabular-nums; }
.histogram i { display: block; height: .95rem; background: var(--bar); border-radius: .15rem; }
ul.rows { margin: .3rem 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  margin: .8rem 0; padding: .4rem .9rem .8rem; }
.message { display: grid; grid-template-columns: 8.5rem 1fr; gap: .8rem; padding: .45rem 0;
  border-top: 1px solid var(--line); }
.message:first-of-type { border-top: 0; }
.who { color: var(--soft); font-size: .82rem; overflow-wrap: anywhere; }
.who b { display: block; color: var(--ink); }
.text { font: 13.5px/1.65 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.text span { border-radius: .2rem; box-shadow: inset 0 -1px rgb(128 128 128 / .28); }
.text .special { color: var(--chip); border: 1px solid currentColor; padding: 0 .2rem;
  margin: 0 .1rem; font-size: .86em; box-shadow: none; }
.legend span { padding: .05rem .4rem; margin-right: .6rem; border-radius: .2rem; }
@media (max-width: 40rem) { .message { grid-template-columns: 1fr; gap: .1rem; } }
"""
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def preview_page(
    census: DataStatistics, examples: Sequence[Example], vocabulary: Vocabulary, *, title: str
) -> str:
    """Return the HTML of a preview.

    Args:
        census: The figures.
        examples: Samples to show token by token.
        vocabulary: That they were rendered with.
        title: Of the page, e.g. the recipe's path.
    """
    largest = max((float(example.loss_weights.max()) for example in examples), default=1.0)
    body = [
        f"<h1>{_text(title)}</h1>",
        '<p class="note">What is trained, exactly as the model will see it when it is served. '
        + " ".join(f'<a href="#{name}">{name}</a>' for name in [*census.splits, "samples"])
        + "</p>",
        *_findings(census),
        *(block for name, split in census.splits.items() for block in _split(name, split)),
        *_overlap("Held-out rows that training sees too", census.leaked),
        *_overlap("Held-out rows whose question training sees too", census.leaked_prompts),
        '<h2 id="samples">Samples</h2>',
        _legend(examples, largest),
        *(_sample(number, one, vocabulary, largest) for number, one in enumerate(examples, 1)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}: data preview</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _findings(census: DataStatistics) -> Iterable[str]:
    for heading, kind, found in (
        ("Problems", ' class="bad"', census.problems()),
        ("To know", "", census.warnings()),
    ):
        if found:
            items = "".join(f"<li>{_text(line)}</li>" for line in found)
            yield f"<h2{kind}>{heading}</h2><ul class='rows'>{items}</ul>"


def _split(name: str, split: SplitStatistics) -> Iterable[str]:
    counts = split.report.counts
    yield f'<h2 id="{_text(name)}">{_text(name)}</h2>'
    tiles = [
        ("rows read", f"{counts['rows']:,}", False),
        ("rejected", f"{counts['rejected']:,}", bool(counts["rejected"])),
        ("samples", f"{split.samples:,}", False),
        ("tokens", f"{split.tokens:,}", False),
        ("tokens trained", f"{split.trained_share:.1%}", False),
        ("context rendered again", f"{_share(counts['repeated_tokens'], counts['tokens'])}", False),
    ]
    if split.filled is not None:
        tiles.append((f"filled, {split.packed_rows:,} packed rows", f"{split.filled:.1%}", False))
    yield (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile{" bad" if bad else ""}"><b>{value}</b>{label}</div>'
            for label, value, bad in tiles
        )
        + "</div>"
    )
    yield _sources(split)
    yield _trained_by_channel(split.report.channels)
    if split.histogram:
        yield "<h3>Tokens per sample</h3>" + _histogram(split)
    rejected = split.report.rejected
    if rejected:
        by_reason = "".join(
            f"<tr><td>{_text(reason)}</td><td>{count}</td></tr>"
            for reason, count in reasons(rejected).most_common(12)
        )
        yield f"<h3>Why rows were rejected</h3><table>{by_reason}</table>"
        yield _listed(f"{counts['rejected']:,} rejected rows", rejected)
    yield from _places("Rows with special tokens spelled out in text", split.report.special_text)
    yield from _places("Samples that were too long", split.report.too_long)
    yield from _overlap("Rows equal to an earlier one", split.duplicates)
    yield from _overlap("Rows with the question of an earlier one", split.same_prompts)


def _sources(split: SplitStatistics) -> str:
    rows = "".join(
        f"<tr><td>{_text(path)}</td><td>{weight:g}</td><td>{report.counts['rows']:,}</td>"
        f"<td>{report.counts['rejected']:,}</td><td>{report.counts['samples']:,}</td>"
        f"<td>{report.counts['tokens']:,}</td></tr>"
        for path, weight, report in split.sources
    )
    return (
        "<h3>Sources</h3><table><tr><th>path</th><th>weight</th><th>rows</th><th>rejected</th>"
        f"<th>samples</th><th>tokens</th></tr>{rows}</table>"
    )


def _trained_by_channel(channels: Counter[str]) -> str:
    total = sum(channels.values())
    rows = "".join(
        f"<tr><td>{_text(channel)}</td><td>{count:,}</td><td>{_share(count, total)}</td></tr>"
        for channel, count in channels.items()
    )
    return f"<h3>Trained tokens by channel</h3><table>{rows}</table>"


def _histogram(split: SplitStatistics) -> str:
    highest = max(count for _, _, count in split.histogram)
    bars = "".join(
        f"<span class='soft'>{low:,} to {high - 1:,}</span>"
        f'<span><i style="width:{100 * count / highest:.1f}%"></i></span><span>{count:,}</span>'
        for low, high, count in split.histogram
    )
    about = ", ".join(f"{name} {value:,.0f}" for name, value in split.lengths.items())
    return f'<div class="histogram">{bars}</div><p class="note">{about}</p>'


def _legend(examples: Sequence[Example], largest: float) -> str:
    weights = sorted({0.0, *(float(w) for one in examples for w in set(one.loss_weights.tolist()))})
    # The smallest and the largest ones where there are many.
    steps = weights if len(weights) <= 6 else [*weights[:2], *weights[-3:]]
    spans = "".join(
        f'<span style="{_colour(weight, largest)}">weight {weight:g}</span>' for weight in steps
    )
    chip = '<span class="text"><span class="special">&lt;|special|&gt;</span></span>'
    return f'<p class="legend">{spans}{chip}hover a token for its id and weight</p>'


def _sample(number: int, example: Example, vocabulary: Vocabulary, largest: float) -> str:
    trained = int((example.loss_weights > 0).sum())
    messages = "".join(_message(example, span, vocabulary, largest) for span in example.spans)
    return (
        f"<article><h3>{number}. {_text(example.source)} "
        f'<span class="soft">{len(example.input_ids):,} tokens, {trained:,} trained</span></h3>'
        f"{messages}</article>"
    )


def _message(example: Example, span: Span, vocabulary: Vocabulary, largest: float) -> str:
    role, _, rest = span.label.partition(" ")
    trained = int((example.loss_weights[span.start : span.end] > 0).sum())
    size = f"{span.end - span.start:,} tokens" + (f", {trained:,} trained" if trained else "")
    text = "".join(_piece(piece, largest) for piece in pieces(example, span, vocabulary))
    return (
        f'<div class="message"><div class="who"><b>{_text(role)}</b>{_text(rest)}<div>{size}</div>'
        f'</div><div class="text">{text}</div></div>'
    )


def _piece(piece: Piece, largest: float) -> str:
    ids = " ".join(map(str, piece.ids))
    special = ' class="special"' if piece.special else ""
    return (
        f'<span{special} title="{ids}, weight {piece.weight:g}" '
        f'style="{_colour(piece.weight, largest)}">{_text(piece.text)}</span>'
    )


def _colour(weight: float, largest: float) -> str:
    if not weight:
        return ""
    return f"background:rgb(var(--train) / {0.12 + 0.33 * weight / largest:.2f})"


def _places(heading: str, places: Sequence[str]) -> Iterable[str]:
    if places:
        yield _listed(heading, places)


def _overlap(heading: str, overlap: Overlap) -> Iterable[str]:
    if overlap.rows:
        yield _listed(f"{heading}: {overlap.rows:,}", overlap.places)


def _listed(heading: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(line)}</li>" for line in lines[:MOST_LISTED])
    more = f"<li>and {len(lines) - MOST_LISTED:,} more</li>" if len(lines) > MOST_LISTED else ""
    return (
        f"<details><summary>{_text(heading)}</summary><ul class='rows'>{items}{more}</ul></details>"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0 %"


def _text(text: str) -> str:
    return escape(visible(text), quote=True)
