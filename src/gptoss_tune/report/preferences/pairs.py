"""Pairs before and after: both answers side by side, how likely each was and has become.

Log-probabilities are sums over an answer's counted tokens, whatever the loss compares: one scale
for all methods, on which the longer answer is the less likely one, all else equal. So each side
says its tokens and its figure per token, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_tune.harmony.conversation import CHANNELS
from gptoss_tune.report.preferences.method import Method, reference_name
from gptoss_tune.report.read import Run, listing, mapping
from gptoss_tune.report.samples import MOST_SHOWN, folded, said
from gptoss_tune.report.text import count, figure, number, text
from gptoss_tune.run.folder import PAIRS

_SIDES = ("chosen", "rejected")
_SIGNS = (1, -1)
"""Which way the log-probability of a chosen and of a rejected answer should go."""
_SPLITS = {"eval": "held-out", "train": "training"}


@dataclass(frozen=True)
class _Side:
    """An answer of a pair: its text by channel, its tokens, its log-probabilities in nats."""

    said: dict[str, Any]
    tokens: float | None
    before: float | None
    after: float | None

    @property
    def gained(self) -> float | None:
        """What it gained, in nats."""
        return _less(self.after, self.before)


@dataclass(frozen=True)
class _Pair:
    """A pair, of which a side is ``None`` where the row has one answer alone."""

    source: object
    prompt: object
    chosen: _Side | None
    rejected: _Side | None

    @property
    def margins(self) -> tuple[float, float] | None:
        """How much likelier the chosen answer was and is than the rejected one, in nats."""
        if self.chosen is None or self.rejected is None:
            return None
        before = _less(self.chosen.before, self.rejected.before)
        after = _less(self.chosen.after, self.rejected.after)
        return None if before is None or after is None else (before, after)


def pairs(run: Run) -> str:
    """Return the section of the pairs; empty for a run without them."""
    found = [_pair(mapping(one)) for one in listing(run.pairs.get("pairs"))]
    if not found:
        return ""
    split = run.pairs.get("split")
    kind = _SPLITS.get(split, "") if isinstance(split, str) else ""
    sample = "answer" if run.method.sample == "answer" else "pair"
    noun = f"{kind} {sample}".strip()
    shown = [_article(n, pair, run.method) for n, pair in enumerate(found[:MOST_SHOWN], start=1)]
    return (
        f"<p>{_summary(found, noun, run.method)}</p>"
        f'<p class="note">{_measured(run.pairs.get("reference"), sample)}</p>'
        + folded(shown, len(found), f"{sample}s", PAIRS)
    )


def _measured(reference: object, sample: str) -> str:
    of = reference_name(reference)
    before = f"under the reference, {of}" if of not in ("", "none") else "under the base"
    margin = " A margin is that of the chosen answer less that of the rejected one."
    return (
        f"Log-probabilities are sums over an answer's counted tokens, in nats: before, {before}; "
        f"after, under the trained model.{margin if sample == 'pair' else ''}"
    )


def _summary(found: Sequence[_Pair], noun: str, method: Method) -> str:
    """Return how many pairs stood right before and after; for single answers, how many moved so."""
    if any(pair.margins is not None for pair in found):
        return _of_pairs(found, noun)
    parts = []
    for side, name, word, sign in zip(_SIDES, method.sides, ("more", "less"), _SIGNS, strict=True):
        sides = [one for pair in found if (one := getattr(pair, side)) is not None]
        moved = [one.gained for one in sides if one.gained is not None]
        if moved:
            right = sum(sign * gained > 0 for gained in moved)
            of = f"of {_many(len(moved), f'{name} answer')}"
            parts.append(f"{of} <b>{_of(right, moved)}</b> became {word} likely")
    if not parts:
        return f"{_many(len(found), noun).capitalize()}, without readable figures."
    return f"{_many(len(found), noun).capitalize()}: {'; '.join(parts)}."


def _of_pairs(found: Sequence[_Pair], noun: str) -> str:
    margins = [pair.margins for pair in found if pair.margins is not None]
    before, after = (sum(margin[place] > 0 for margin in margins) for place in (0, 1))
    grown = sum(last > first for first, last in margins)
    parts = [
        f"Of {_many(len(margins), noun)} the chosen answer was likelier than the rejected one "
        f"before in <b>{_of(before, margins)}</b>, after in <b>{_of(after, margins)}</b>",
        f"the margin grew in {grown:,}",
    ]
    if lost := sum(first > 0 >= last for first, last in margins):
        parts.append(f'<span class="bad">it turned against the chosen answer in {lost:,}</span>')
    moved = [pair.chosen.gained for pair in found if pair.margins and pair.chosen]
    if fallen := sum(gained < 0 for gained in moved if gained is not None):
        parts.append(f"the chosen answer itself became less likely in {fallen:,}")
    if missed := len(found) - len(margins):
        parts.append(f"{missed:,} without readable figures are left out")
    return "; ".join(parts) + "."


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _of(part: int, whole: Sequence[object]) -> str:
    return f"{part:,} ({part / len(whole):.0%})"


def _pair(found: dict[str, Any]) -> _Pair:
    sides = [_side(found[side]) if found.get(side) is not None else None for side in _SIDES]
    return _Pair(found.get("source"), found.get("prompt"), *sides)


def _side(value: object) -> _Side:
    found = mapping(value)
    said = found.get("text")
    return _Side(
        said if isinstance(said, dict) else {"": said} if said else {},
        number(found.get("tokens")),
        number(found.get("before")),
        number(found.get("after")),
    )


def _less(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _article(place: int, pair: _Pair, method: Method) -> str:
    sides = [
        _answer(name, side, sign)
        for name, side, sign in zip(method.sides, (pair.chosen, pair.rejected), _SIGNS, strict=True)
        if side is not None
    ]
    about = "" if pair.source is None else text(pair.source, 300)
    nothing = '<p class="note">(no readable answer)</p>'
    return (
        f'<article class="box"><h3>{place}. {about}</h3>{_verdict(pair)}'
        f'<div class="said"><b>user</b><div class="words">{text(pair.prompt or "")}</div></div>'
        f'<div class="sides">{"".join(sides) or nothing}</div></article>'
    )


def _verdict(pair: _Pair) -> str:
    """Return the margin before and after, and in words and colour what became of it."""
    if pair.margins is None:
        return ""
    before, after = pair.margins
    words, css = {
        (True, True): ("the chosen answer was the likelier one and is", "good"),
        (False, True): ("turned: the chosen answer has become the likelier one", "good"),
        (True, False): ("turned: the chosen answer is no longer the likelier one", "bad"),
        (False, False): ("the chosen answer is still not the likelier one", "bad"),
    }[before > 0, after > 0]
    return (
        f'<p class="about">margin {_signed(before)} → <b class="{css}">{_signed(after)}</b> nats '
        f'({_signed(after - before)}): <b class="{css}">{words}</b></p>'
    )


def _answer(name: str, side: _Side, sign: int) -> str:
    told = "".join(
        said({"channel": channel, "content": side.said[channel]})
        for channel in sorted(side.said, key=_order)
        if side.said[channel] not in (None, "")
    )
    nothing = '<p class="note">(no readable text)</p>'
    tokens = f", {count(side.tokens)} tokens" if side.tokens is not None else ""
    return (
        f'<div class="side"><div class="about"><b>{text(name)}</b><span class="soft">{tokens}'
        f"<br>{_moved(side, sign)}</span></div>{told or nothing}</div>"
    )


def _moved(side: _Side, sign: int) -> str:
    """Return what became of an answer's log-probability; ``sign`` is the way that it should go."""
    if side.before is None and side.after is None:
        return "log-probability unknown"
    moved = f"log-probability {figure(side.before)} → {figure(side.after)} nats"
    if side.gained is not None:
        css = "good" if sign * side.gained > 0 else "bad"
        moved += f' (<b class="{css}">{_signed(side.gained)}</b>)'
    if side.tokens is not None and side.tokens >= 1:
        ends = (None if x is None else x / side.tokens for x in (side.before, side.after))
        moved += f"; per token {' → '.join(figure(x, 3) for x in ends)}"
    return moved


def _signed(value: float) -> str:
    return f"+{figure(value)}" if value > 0 else figure(value)


def _order(channel: str) -> tuple[int, str]:
    return (CHANNELS.index(channel) if channel in CHANNELS else len(CHANNELS), channel)
