"""What the model says before and after: answers side by side, channels apart; and its grades."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gptoss_tune.harmony.conversation import CHANNELS
from gptoss_tune.report.read import Run, listing, mapping
from gptoss_tune.report.text import count, figure, number, table, text

MOST_SHOWN = 24
"""Samples that a page shows."""
OPEN = 3
"""Of them, those that are not folded away: the figures below are to be found without a search."""


def samples(run: Run) -> str:
    """Return the section of samples and grades; empty when the run was not evaluated."""
    if not run.evaluations:
        return ""
    before, after = run.evaluations[0], run.evaluations[-1]
    pairs = list(_pairs(before, after))
    shown = [
        _article(place, prompt, sides)
        for place, (prompt, sides) in enumerate(pairs[:MOST_SHOWN], start=1)
    ]
    return _scores(run.evaluations) + folded(shown, len(pairs), "samples", "evaluation/")


def folded(shown: Sequence[str], total: int, what: str, where: str) -> str:
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


def _pairs(
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
    spoken = "".join(said(mapping(message)) for message in listing(sample.get("messages")))
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


def said(message: dict[str, Any]) -> str:
    """Return a message as HTML, with its channel and to whom it goes."""
    channel = message.get("channel")
    css = channel if channel in CHANNELS else "other"
    to = f" to {text(message['recipient'], 80)}" if message.get("recipient") else ""
    return (
        f'<div class="said {css}"><b>{text(channel or "no channel", 40)}{to}</b>'
        f'<div class="words">{text(message.get("content", ""))}</div></div>'
    )
