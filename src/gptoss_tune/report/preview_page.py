"""The preview as one self-contained HTML page: no script, no server, nothing from elsewhere.

Text of a data set is hostile, so every text goes through ``report.text``, which spells out the
invisible and escapes the rest, and the page forbids scripts and connections to itself by a content
security policy as well. A page with a script that filters and folds was the alternative;
``<details>`` folds without one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from gptoss_tune.harmony.dataset.statistics import DataStatistics, Overlap, SplitStatistics, reasons
from gptoss_tune.harmony.render import Example, Span
from gptoss_tune.harmony.vocabulary import Vocabulary
from gptoss_tune.report.plot import bars
from gptoss_tune.report.style import html_page
from gptoss_tune.report.text import table, text
from gptoss_tune.report.text import tiles as boxes
from gptoss_tune.report.token_view import Piece, pieces

MOST_LISTED: Final = 50


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
        f"<h1>{text(title)}</h1>",
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
    return html_page(f"{text(title)}: data preview", "\n".join(body))


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
    counts = split.report.counts
    yield f'<h2 id="{text(name)}">{text(name)}</h2>'
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
    yield boxes(((value, label, bad) for label, value, bad in tiles), css="tiles narrow")
    yield _sources(split)
    channels = _trained_by_channel(split.report.channels)
    yield f'<div class="figures"><div>{channels}</div>{_histogram(split)}</div>'
    rejected = split.report.rejected
    if rejected:
        by_reason = [
            [text(reason), f"{count:,}"] for reason, count in reasons(rejected).most_common(12)
        ]
        yield "<h3>Why rows were rejected</h3>" + table(["reason", "rows"], by_reason)
        yield _listed(f"{counts['rejected']:,} rejected rows", rejected)
    yield from _places("Rows with special tokens spelled out in text", split.report.special_text)
    yield from _places("Samples that were too long", split.report.too_long)
    yield from _overlap("Rows equal to an earlier one", split.duplicates)
    yield from _overlap("Rows with the question of an earlier one", split.same_prompts)


def _sources(split: SplitStatistics) -> str:
    rows = [
        [
            text(path),
            f"{weight:g}",
            *(f"{report.counts[name]:,}" for name in ("rows", "rejected", "samples", "tokens")),
        ]
        for path, weight, report in split.sources
    ]
    heads = ["path", "weight", "rows", "rejected", "samples", "tokens"]
    return "<h3>Sources</h3>" + table(heads, rows)


def _trained_by_channel(channels: Counter[str]) -> str:
    total = sum(channels.values())
    rows = [
        [text(channel), f"{count:,}", _share(count, total)] for channel, count in channels.items()
    ]
    return "<h3>Trained tokens by channel</h3>" + table(["channel", "tokens", "share"], rows)


def _histogram(split: SplitStatistics) -> str:
    counts = [(f"{low:,} to {high - 1:,}", count) for low, high, count in split.histogram]
    about = ", ".join(f"{name} {value:,.0f}" for name, value in split.lengths.items())
    return bars("Tokens per sample", counts, across="tokens", caption=about)


def _legend(examples: Sequence[Example], largest: float) -> str:
    weights = sorted({0.0, *(float(w) for one in examples for w in set(one.loss_weights.tolist()))})
    # The smallest and the largest ones where there are many.
    steps = weights if len(weights) <= 6 else [*weights[:2], *weights[-3:]]
    spans = "".join(
        f'<span style="{_colour(weight, largest)}">weight {weight:g}</span>' for weight in steps
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


def _message(example: Example, span: Span, vocabulary: Vocabulary, largest: float) -> str:
    role, _, rest = span.label.partition(" ")
    trained = int((example.loss_weights[span.start : span.end] > 0).sum())
    size = f"{span.end - span.start:,} tokens" + (f", {trained:,} trained" if trained else "")
    tokens = "".join(_piece(piece, largest) for piece in pieces(example, span, vocabulary))
    return (
        f'<div class="message"><div class="who"><b>{text(role)}</b>{text(rest)}<div>{size}</div>'
        f'</div><div class="tokens">{tokens}</div></div>'
    )


def _piece(piece: Piece, largest: float) -> str:
    ids = " ".join(map(str, piece.ids))
    special = ' class="special"' if piece.special else ""
    return (
        f'<span{special} title="{ids}, weight {piece.weight:g}" '
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
