"""The preview as one self-contained HTML page: no script, no server, nothing from elsewhere.

Text of a data set is hostile, so every text goes through ``report.text``, which spells out the
invisible and escapes the rest, and the page forbids scripts and connections to itself by a content
security policy as well. A page with a script that filters and folds was the alternative;
``<details>`` folds without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gptoss_tune.harmony.dataset.pair_statistics import (
    NOUNS,
    PairStatistics,
    dropped,
    dropped_phrases,
)
from gptoss_tune.harmony.dataset.statistics import DataStatistics, SplitStatistics
from gptoss_tune.harmony.places import Overlap
from gptoss_tune.harmony.render import Example, Span
from gptoss_tune.harmony.vocabulary import Vocabulary
from gptoss_tune.report.parts.plot import bars
from gptoss_tune.report.parts.style import html_page
from gptoss_tune.report.parts.text import table, text
from gptoss_tune.report.parts.text import tiles as boxes
from gptoss_tune.report.token_view import Piece, ShownBranch, ShownPreference, pieces

MOST_LISTED: Final = 50

_PAIR_CSS: Final = """
:root { --other: 196 48 48; }
@media (prefers-color-scheme: dark) { :root { --other: 236 92 84; } }
@media print { :root { --other: 196 48 48; } }
.side { min-width: 0; border-top: 3px solid rgb(var(--train)); padding-top: .35rem; }
.side.other, .weights .other { --train: var(--other); }
.side .message { grid-template-columns: minmax(0, 1fr); gap: .1rem; }
.side .who b { display: inline; margin-right: .4rem; }
.side .who div { display: inline; margin-left: .8rem; }
.side p.soft { margin: .5rem 0 0; font-size: .82rem; }
.asked .tokens, .side .tokens span[style=""]:not(.special) { color: var(--soft); }
.sides { margin-top: .6rem; } .sides.one { grid-template-columns: minmax(0, 1fr); }
.told { color: var(--bad); font-size: .88rem; margin: 0 0 .4rem; }
.weights { max-width: none; } .weights > span { display: inline-block; }
.tokens .special { white-space: nowrap; }
"""
"""Of a page of preferences: what the other answer's tokens are coloured with, and its column."""


def preview_page(
    census: DataStatistics,
    examples: Sequence[Example | ShownPreference],
    vocabulary: Vocabulary,
    *,
    title: str,
) -> str:
    """Return the HTML of a preview.

    Args:
        census: The figures.
        examples: Samples to show token by token.
        vocabulary: That they were rendered with.
        title: Of the page, e.g. the recipe's path.
    """
    rows, row = census.rows, census.row
    things = f"{NOUNS[rows][0]}s"
    weights = {weight for one in examples for weight in _weights(one)}
    largest = max(weights, default=1.0)
    body = [
        f"<h1>{text(title)}</h1>",
        '<p class="note">What is trained, exactly as the model will see it when it is served. '
        + " ".join(f'<a href="#{name}">{name}</a>' for name in [*census.splits, things])
        + "</p>",
        *_findings(census),
        *(block for name, split in census.splits.items() for block in _split(name, split)),
        *_overlap(f"Held-out {row}s that training sees too", census.leaked),
        *_overlap(f"Held-out {row}s whose question training sees too", census.leaked_prompts),
        f'<h2 id="{things}">{things.capitalize()}</h2>',
        _legend(weights, largest, both=rows != "conversation"),
        *(
            _preference(number, one, vocabulary, largest)
            if isinstance(one, ShownPreference)
            else _sample(number, one, vocabulary, largest)
            for number, one in enumerate(examples, 1)
        ),
    ]
    css = "" if rows == "conversation" else _PAIR_CSS
    return html_page(f"{text(title)}: data preview", "\n".join(body), css)


def _findings(census: DataStatistics) -> Iterable[str]:
    for heading, kind, found in (
        ("Problems", ' class="bad"', census.problems()),
        ("To know", "", census.warnings()),
        ("By the way", "", census.remarks()),
    ):
        if found:
            items = "".join(f"<li>{text(line)}</li>" for line in found)
            yield f'<h2{kind}>{heading}</h2><ul class="lines">{items}</ul>'


def _split(name: str, split: SplitStatistics) -> Iterable[str]:
    counts, rows = split.report.counts, split.rows
    sample, row = NOUNS[rows]
    # "Rejected" is the name of an answer in pairs.
    refused = "rejected" if rows == "conversation" else "refused"
    yield f'<h2 id="{text(name)}">{text(name)}</h2>'
    yield boxes(_tiles(split, refused), css="tiles narrow")
    if rows != "conversation" and (left_out := dropped_phrases(counts, rows)):
        yield f'<p class="note">Dropped: {text(", ".join(left_out))}.</p>'
    yield _sources(split, refused)
    channels = _trained_by_channel(split.report.channels)
    if split.preferences is not None:
        channels = _both_sides(split.preferences)
    yield f'<div class="figures"><div>{channels}</div>{_histogram(split)}</div>'
    rejected = split.report.rejected
    mistakes = sorted(split.report.mistakes.values(), key=lambda one: -one.rows)
    if rejected:
        items = "".join(f"<li>{text(str(one))}</li>" for one in mistakes[:MOST_LISTED])
        yield f'<h3>Why rows were {refused}</h3><ul class="lines">{items}</ul>'
        yield _listed(f"{counts['rejected']:,} {refused} rows", rejected)
    yield from _places("Rows with special tokens spelled out in text", split.report.special_text)
    if rows == "conversation":
        yield from _places("Samples that were too long", split.report.too_long)
    for what, overlap in split.listed():
        yield from _overlap(what.format(f"{sample}s").capitalize(), overlap)
    again = f"{row.capitalize()}s"
    yield from _overlap(f"{again} equal to an earlier one", split.duplicates)
    yield from _overlap(f"{again} with the question of an earlier one", split.same_prompts)


def _tiles(split: SplitStatistics, refused: str) -> Iterator[tuple[str, str, bool]]:
    """Yield the headline figures of a split: value, label, and whether it is bad news."""
    counts = split.report.counts
    yield f"{counts['rows']:,}", "rows read", False
    yield f"{counts['rejected']:,}", refused, bool(counts["rejected"])
    yield f"{split.samples:,}", f"{NOUNS[split.rows][0]}s", False
    if split.rows != "conversation":
        left_out = sum(dropped(counts, split.rows).values())
        yield f"{left_out:,}", "dropped", False
    if documents := counts["documents"]:
        yield f"{documents:,}", "documents of raw text", False
    yield f"{split.tokens:,}", "tokens", False
    if split.rows == "conversation":
        yield f"{split.trained_share:.1%}", "tokens trained", False
        again = "context rendered again"
    else:
        yield f"{split.trained_share:.1%}", "tokens counted", False
        again = "the prompt rendered again"
    if split.rows != "label":
        yield f"{_share(counts['repeated_tokens'], counts['tokens'])}", again, False
    if split.rows == "pair" and split.preferences is not None:
        yield f"{split.preferences.longer_share:.1%}", "chosen is the longer one", False
    if split.filled is not None:
        yield f"{split.filled:.1%}", f"filled, {split.packed_rows:,} packed rows", False


def _sources(split: SplitStatistics, refused: str) -> str:
    rows = [
        [
            text(path),
            f"{weight:g}",
            *(f"{report.counts[name]:,}" for name in ("rows", "rejected", "samples", "tokens")),
        ]
        for path, weight, report in split.sources
    ]
    heads = ["path", "weight", "rows", refused, f"{NOUNS[split.rows][0]}s", "tokens"]
    return "<h3>Sources</h3>" + table(heads, rows)


def _trained_by_channel(channels: Counter[str]) -> str:
    total = sum(channels.values())
    rows = [
        [text(channel), f"{count:,}", _share(count, total)] for channel, count in channels.items()
    ]
    return "<h3>Trained tokens by channel</h3>" + table(["channel", "tokens", "share"], rows)


def _both_sides(figures: PairStatistics) -> str:
    heads = ["", *(text(name) for name, _ in figures.sides)]
    sides = [side for _, side in figures.sides]
    lengths = [
        ["answers", *(f"{side.answers:,}" for side in sides)],
        ["tokens, prompts included", *(f"{side.tokens:,}" for side in sides)],
        ["counted tokens", *(f"{side.counted:,}" for side in sides)],
        ["counted tokens on average", *(f"{side.mean_length:,.1f}" for side in sides)],
        ["sum of the weights", *(f"{side.weight:,.6g}" for side in sides)],
    ]
    channels = [
        [
            text(channel),
            *(
                f"{side.channels[channel]:,} ({_share(side.channels[channel], side.counted)})"
                for side in sides
            ),
        ]
        for channel in sides[0].channels
    ]
    return (
        "<h3>Both sides</h3>"
        + table(heads, lengths)
        + "<h3>Counted tokens by channel</h3>"
        + table(["channel", *heads[1:]], channels)
    )


def _histogram(split: SplitStatistics) -> str:
    counts = [(f"{low:,} to {high - 1:,}", count) for low, high, count in split.histogram]
    about = ", ".join(f"{name} {value:,.0f}" for name, value in split.lengths.items())
    return bars(f"Tokens per {NOUNS[split.rows][0]}", counts, across="tokens", caption=about)


def _weights(shown: Example | ShownPreference) -> set[float]:
    if isinstance(shown, ShownPreference):
        examples = [document for branch in shown.branches for document in branch.documents]
    else:
        examples = [shown]
    return {float(weight) for one in examples for weight in set(one.loss_weights.tolist())}


def _legend(weights: set[float], largest: float, *, both: bool) -> str:
    found = sorted({0.0, *weights})
    # The smallest and the largest ones where there are many.
    steps = found if len(found) <= 6 else [*found[:2], *found[-3:]]
    signed = [(weight, "") for weight in steps]
    if both:
        signed = [(0.0, ""), *((way * one, "+") for one in steps if one for way in (1, -1))]
    spans = "".join(
        f'<span{" class=other" if weight < 0 else ""} style="{_colour(abs(weight), largest)}">'
        f"weight {weight:{sign}g}</span>"
        for weight, sign in signed
    )
    chip = '<span class="tokens"><span class="special">&lt;|special|&gt;</span></span>'
    return f'<p class="weights">{spans}{chip}hover a token for its id and weight</p>'


def _sample(number: int, example: Example, vocabulary: Vocabulary, largest: float) -> str:
    trained = int((example.loss_weights > 0).sum())
    messages = "".join(_message(example, span, vocabulary, largest) for span in example.spans)
    return (
        f'<article class="box"><h3>{number}. {text(example.source)} '
        f'<span class="soft">{len(example.input_ids):,} tokens, {trained:,} trained</span></h3>'
        f"{messages}</article>"
    )


def _preference(number: int, shown: ShownPreference, vocabulary: Vocabulary, largest: float) -> str:
    first = shown.branches[0].documents[0]
    asked = "".join(_message(first, span, vocabulary, largest) for span in shown.prompt)
    weight = "" if shown.weight == 1 else f"weight {shown.weight:g}"
    notes = "".join(f'<p class="told">{text(note)}</p>' for note in shown.notes)
    sides = "".join(_side(one, shown, vocabulary, largest) for one in shown.branches)
    alone = " one" if len(shown.branches) == 1 else ""
    return (
        f'<article class="box"><h3>{number}. {text(shown.source)} '
        f'<span class="soft">{weight}</span></h3>{notes}<div class="asked">{asked}</div>'
        f'<div class="sides{alone}">{sides}</div></article>'
    )


def _side(
    branch: ShownBranch, shown: ShownPreference, vocabulary: Vocabulary, largest: float
) -> str:
    blocks: list[str] = []
    count = len(branch.documents)
    for place, document in enumerate(branch.documents, start=1):
        same, spans = shown.following(document)
        if count > 1:
            again = f", after {same:,} tokens of the prompt" if place > 1 else ""
            blocks.append(f'<p class="soft">context {place} of {count}{again}</p>')
        blocks += [_message(document, span, vocabulary, largest, branch.sign) for span in spans]
    sign, css = ("+", "") if branch.sign > 0 else ("\u2212", " other")
    return (
        f'<div class="side{css}"><b>{sign} {text(branch.name)}</b> <span class="soft">'
        f"{branch.tokens:,} tokens, {branch.counted:,} counted, weight "
        f"{branch.sign * shown.weight:+g}</span>{''.join(blocks)}</div>"
    )


def _message(
    example: Example, span: Span, vocabulary: Vocabulary, largest: float, sign: int | None = None
) -> str:
    """Return a message; ``sign``: of a preference, which way its counted tokens are moved."""
    role, _, rest = span.label.partition(" ")
    trained = int((example.loss_weights[span.start : span.end] > 0).sum())
    what = "trained" if sign is None else "counted"
    size = f"{span.end - span.start:,} tokens" + (f", {trained:,} {what}" if trained else "")
    tokens = "".join(_piece(piece, largest, sign) for piece in pieces(example, span, vocabulary))
    return (
        f'<div class="message"><div class="who"><b>{text(role)}</b>{text(rest)}<div>{size}</div>'
        f'</div><div class="tokens">{tokens}</div></div>'
    )


def _piece(piece: Piece, largest: float, sign: int | None) -> str:
    ids = " ".join(map(str, piece.ids))
    special = ' class="special"' if piece.special else ""
    signed = f"{piece.weight:g}" if not sign or not piece.weight else f"{sign * piece.weight:+g}"
    return (
        f'<span{special} title="{ids}, weight {signed}" '
        f'style="{_colour(piece.weight, largest)}">{text(piece.text)}</span>'
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
    items = "".join(f"<li>{text(line)}</li>" for line in lines[:MOST_LISTED])
    more = f"<li>and {len(lines) - MOST_LISTED:,} more</li>" if len(lines) > MOST_LISTED else ""
    return (
        f'<details><summary>{text(heading)}</summary><ul class="lines">{items}{more}</ul></details>'
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0 %"
