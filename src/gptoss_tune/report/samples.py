"""Before and after: what the model says, with its grades, and how likely it finds given answers.

Answers stand side by side, channels apart. Log-probabilities of pairs are sums over an answer's
counted tokens, whatever the loss compares: one scale for all methods, on which the longer answer is
the less likely one, all else equal. So each side says its tokens and its figure per token, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_tune.grading.policy_table import HEADS, policy_rows
from gptoss_tune.harmony.conversation import CHANNELS
from gptoss_tune.report.parts.read import Run, listing, mapping
from gptoss_tune.report.parts.text import count, figure, number, table, text
from gptoss_tune.run.folder import PAIRS
from gptoss_tune.run.method import Method, reference_name

MOST_SHOWN = 24
"""Samples that a page shows."""
OPEN = 3
"""Of them, those that are not folded away: the figures below are to be found without a search."""
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


def samples(run: Run) -> str:
    """Return the section of samples and grades; empty when the run was not evaluated."""
    if not run.evaluations:
        return ""
    before, after = run.evaluations[0], run.evaluations[-1]
    found = list(_matched(before, after))
    shown = [
        _article(place, prompt, sides)
        for place, (prompt, sides) in enumerate(found[:MOST_SHOWN], start=1)
    ]
    return _scores(run.evaluations) + _folded(shown, len(found), "samples", "evaluation/")


def policies(run: Run) -> str:
    """Return the section of a classifier's policies; empty where no prompt names one."""
    found = [(step, one["policies"]) for step, one in run.evaluations if "policies" in one]
    if not found:
        return ""
    (first, before), (last, after) = found[0], found[-1]
    rows = policy_rows(after, before if len(found) > 1 else None)
    if not rows:
        return ""
    when = f"at step {last:,}"
    if len(found) > 1:
        when = f"{'before training' if first == 0 else f'at step {first:,}'} → {when}"
    cells = [[text(name, 64), *(text(cell, 80) for cell in rest)] for name, *rest in rows]
    return table([text(head) for head in HEADS], cells) + (
        f'<p class="note">{when}; each policy with its 95 % interval. An answer without a label '
        "abstains: it is missed by recall where the policy is violated and by specificity where it "
        "is not. The macro average is the mean over policies.</p>"
    )


def _folded(shown: Sequence[str], total: int, what: str, where: str) -> str:
    """Return articles, the first of them open and the others folded away.

    Args:
        shown: The articles, as HTML.
        total: How many there are, shown or not.
        what: Their name, in the plural.
        where: What holds the others.
    """
    parts = list(shown[:OPEN])
    if more := "".join(shown[OPEN:]):
        parts.append(f"<details><summary>{len(shown) - OPEN} more {what}</summary>{more}</details>")
    if total > len(shown):
        parts.append(
            f'<p class="note">The first {len(shown)} of {total:,} {what}; the others are in '
            f"{where}.</p>"
        )
    return "".join(parts)


def _scores(evaluations: list[tuple[int, dict[str, Any]]]) -> str:
    rows = []
    for step, found in evaluations:
        graded, health = mapping(found.get("graded")), mapping(found.get("health"))
        drift = mapping(found.get("drift"))
        refusals = drift.get("refusal_rate")
        if isinstance(refusals, dict):
            refusals = refusals.get("tuned")
        rate = number(refusals)
        rows.append(
            [
                "before" if step == 0 else f"{step:,}",
                _of(graded.get("passed"), graded.get("total")),
                _of(health.get("valid"), health.get("total")),
                figure(number(drift.get("kl"))),
                "–" if rate is None else f"{rate:.1%}",
            ]
        )
    heads = ["step", "graded right", "healthy harmony", "KL from the base (nats)", "refused"]
    return table(heads, rows)


def _of(part: object, total: object) -> str:
    done, whole = number(part), number(total)
    if done is None or not whole:
        return "–"
    return f"{done:,.0f} of {whole:,.0f} ({done / whole:.0%})"


def _matched(
    before: tuple[int, dict[str, Any]], after: tuple[int, dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]]:
    """Yield each prompt with its answers; the n-th use of a prompt goes with the n-th."""
    names = ["before training" if step == 0 else f"step {step:,}" for step in (before[0], after[0])]
    earlier: dict[str, list[dict[str, Any]]] = {}
    if before is not after:
        for sample in map(mapping, listing(before[1].get("samples"))):
            earlier.setdefault(_key(sample), []).append(sample)
    for sample in map(mapping, listing(after[1].get("samples"))):
        first = earlier.get(_key(sample), [])
        sides = [(names[0], first.pop(0))] if first else []
        yield sample, [*sides, (names[1], sample)]


def _key(sample: dict[str, Any]) -> str:
    return repr((sample.get("source"), sample.get("effort"), sample.get("prompt")))


def _article(place: int, prompt: dict[str, Any], sides: list[tuple[str, dict[str, Any]]]) -> str:
    asked = "".join(
        f'<div class="said"><b>{text(mapping(m).get("role", ""), 40)}</b>'
        f'<div class="words">{text(mapping(m).get("content", ""))}</div></div>'
        for m in listing(prompt.get("prompt"))
    )
    about = text(prompt.get("source", ""), 300)
    effort = text(prompt.get("effort", ""), 20)
    answered = "".join(_side(name, sample) for name, sample in sides)
    return (
        f'<article class="box"><h3>{place}. {about} <span class="soft">{effort} effort</span></h3>'
        f'{asked}<div class="sides">{answered}</div></article>'
    )


def _side(name: str, sample: dict[str, Any]) -> str:
    spoken = "".join(_said(mapping(message)) for message in listing(sample.get("messages")))
    facts = [text(name), f"{count(number(sample.get('tokens')))} tokens"]
    if sample.get("ended") == "length":
        facts.append("cut off at the limit")
    grade = mapping(sample.get("grade"))
    verdict = ""
    if grade:
        word, css = ("right", "good") if grade.get("passed") is True else ("wrong", "bad")
        expected = f", expected: {text(grade.get('expected', ''), 200)}"
        verdict = f' <strong class="{css}">{word}</strong>{expected if css == "bad" else ""}'
    problems = "".join(f"<li>{text(line, 300)}</li>" for line in listing(sample.get("health")))
    listed = f'<ul class="lines bad">{problems}</ul>' if problems else ""
    nothing = '<p class="note">(no readable message)</p>'
    return (
        f'<div class="side"><div class="about"><span class="soft">{", ".join(facts)}</span>'
        f"{verdict}</div>{spoken or nothing}{listed}</div>"
    )


def _said(message: dict[str, Any]) -> str:
    """Return a message as HTML, with its channel and to whom it goes."""
    channel = message.get("channel")
    css = channel if channel in CHANNELS else "other"
    to = f" to {text(message['recipient'], 80)}" if message.get("recipient") else ""
    return (
        f'<div class="said {css}"><b>{text(channel or "no channel", 40)}{to}</b>'
        f'<div class="words">{text(message.get("content", ""))}</div></div>'
    )


def pairs(run: Run) -> str:
    """Return the section of the pairs; empty for a run without them."""
    found = [_read_pair(mapping(one)) for one in listing(run.pairs.get("pairs"))]
    if not found:
        return ""
    split = run.pairs.get("split")
    kind = _SPLITS.get(split, "") if isinstance(split, str) else ""
    sample = "answer" if run.method.sample == "answer" else "pair"
    noun = f"{kind} {sample}".strip()
    shown = [
        _pair_article(n, pair, run.method) for n, pair in enumerate(found[:MOST_SHOWN], start=1)
    ]
    return (
        f"<p>{_pairs_summary(found, noun, run.method)}</p>"
        f'<p class="note">{_measured(run.pairs.get("reference"), sample)}</p>'
        + _folded(shown, len(found), f"{sample}s", PAIRS)
    )


def _measured(reference: object, sample: str) -> str:
    of = reference_name(reference)
    before = f"under the reference, {of}" if of not in ("", "none") else "under the base"
    margin = " A margin is that of the chosen answer less that of the rejected one."
    return (
        f"Log-probabilities are sums over an answer's counted tokens, in nats: before, {before}; "
        f"after, under the trained model.{margin if sample == 'pair' else ''}"
    )


def _pairs_summary(found: Sequence[_Pair], noun: str, method: Method) -> str:
    """Return how many pairs stood right before and after; for single answers, how many moved so."""
    if any(pair.margins is not None for pair in found):
        return _margins_summary(found, noun)
    parts = []
    for side, name, word, sign in zip(_SIDES, method.sides, ("more", "less"), _SIGNS, strict=True):
        sides = [one for pair in found if (one := getattr(pair, side)) is not None]
        moved = [one.gained for one in sides if one.gained is not None]
        if moved:
            right = sum(sign * gained > 0 for gained in moved)
            of = f"of {_many(len(moved), f'{name} answer')}"
            parts.append(f"{of} <b>{_share(right, moved)}</b> became {word} likely")
    if not parts:
        return f"{_many(len(found), noun)}, without readable figures."
    return f"{_many(len(found), noun)}: {'; '.join(parts)}."


def _margins_summary(found: Sequence[_Pair], noun: str) -> str:
    margins = [pair.margins for pair in found if pair.margins is not None]
    before, after = (sum(margin[place] > 0 for margin in margins) for place in (0, 1))
    grown = sum(last > first for first, last in margins)
    parts = [
        f"Of {_many(len(margins), noun)} the chosen answer was likelier than the rejected one "
        f"before in <b>{_share(before, margins)}</b>, after in <b>{_share(after, margins)}</b>",
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


def _share(part: int, whole: Sequence[object]) -> str:
    return f"{part:,} ({part / len(whole):.0%})"


def _read_pair(found: dict[str, Any]) -> _Pair:
    sides = [_read_side(found[side]) if found.get(side) is not None else None for side in _SIDES]
    return _Pair(found.get("source"), found.get("prompt"), *sides)


def _read_side(value: object) -> _Side:
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


def _pair_article(place: int, pair: _Pair, method: Method) -> str:
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
        _said({"channel": channel, "content": side.said[channel]})
        for channel in sorted(side.said, key=_channel_order)
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


def _channel_order(channel: str) -> tuple[int, str]:
    return (CHANNELS.index(channel) if channel in CHANNELS else len(CHANNELS), channel)
