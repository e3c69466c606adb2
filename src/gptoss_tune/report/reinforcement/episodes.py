"""Episodes to read: the best, the middle and the worst of the first and of the last phase.

A curve does not show how a reward is earned; a person who reads ten episodes sees at once that an
answer is guessed, a grader fooled or a tool never used. All that stands in them was written by a
model, a tool or a dataset, and goes through ``text``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gptoss_tune.harmony.conversation import CHANNELS
from gptoss_tune.report.parts.read import Phase, Run, listing, mapping
from gptoss_tune.report.parts.text import count, figure, number, text
from gptoss_tune.run.folder import RunFolder

MOST_MESSAGES = 40
"""Messages of an episode that a page shows: the first three quarters, and the last."""
_MOST_COMPONENTS, _MOST_LINES = 20, 10
_ENDS = {
    "answer": "answered",
    "length": "cut off: the answer was too long",
    "turns": "cut off: too many turns",
    "tokens": "cut off: too many tokens",
    "time": "cut off: its time was over",
    "format": "ended by something that is not harmony",
    "error": "ended by an error of the environment",
}
_SPLITS = {"train": "sampled in training", "eval": "held out, the likeliest tokens"}


def episodes(run: Run) -> str:
    """Return the section of the episodes; empty for a run without them."""
    parts = []
    for split, words in _SPLITS.items():
        phases = [phase for phase in run.rollouts if phase.split == split]
        if not phases:
            continue
        ends = [phases[0], phases[-1]] if len(phases) > 1 else phases
        for place, phase in enumerate(ends):
            is_open = split == "train" and place == len(ends) - 1
            parts.append(_phase(phase, words, is_open))
    if not parts:
        return ""
    where = RunFolder(run.folder).rollouts.name
    note = (
        f"The best, the middle and the worst episode by reward; all of them are in {where}/, a "
        "file for each step that learnt from them."
    )
    return f'<p class="note">{note}</p>' + "".join(parts)


def _phase(phase: Phase, words: str, is_open: bool) -> str:
    chosen = _chosen(phase.episodes)
    shown = "".join(_article(name, episode) for name, episode in chosen)
    totals = [value for one in phase.episodes if (value := _total(one)) is not None]
    mean = f", mean reward {figure(sum(totals) / len(totals), 3)}" if totals else ""
    heading = f"step {phase.step:,}: {_many(len(phase.episodes), 'episode')} {words}{mean}"
    if not is_open:
        names = ", ".join(name for name, _ in chosen)
        shown = f"<details><summary>{names}</summary>{shown}</details>"
    return f"<h3>{text(heading)}</h3>{shown}"


def _chosen(found: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return the best, the middle and the worst episode; fewer where there are fewer."""
    by_reward = sorted(found, key=lambda one: -(_total(one) or 0.0))
    places = {"best": 0, "middle": len(by_reward) // 2, "worst": len(by_reward) - 1}
    chosen: dict[int, str] = {}
    for name, place in places.items():
        chosen.setdefault(place, name)
    return [(name, by_reward[place]) for place, name in chosen.items()]


def _total(episode: dict[str, Any]) -> float | None:
    return number(mapping(episode.get("rewards")).get("total"))


def _article(name: str, episode: dict[str, Any]) -> str:
    source = text(episode.get("source", ""), 300)
    reward = figure(_total(episode), 3)
    listed = "".join(f"<li>{line}</li>" for line in _amiss(episode))
    problems = f'<ul class="lines bad about">{listed}</ul>' if listed else ""
    said = "".join(_said(listing(episode.get("messages"))))
    nothing = '<p class="note">(no readable message)</p>'
    return (
        f'<article class="box"><h3>{name}: reward {reward} <span class="soft">{source}</span></h3>'
        f'<p class="about">{_components(episode)}<br><span class="soft">{_facts(episode)}</span>'
        f"</p>{problems}{said or nothing}</article>"
    )


def _components(episode: dict[str, Any]) -> str:
    found = mapping(mapping(episode.get("rewards")).get("components"))
    parts = [
        f"{text(name, 60)} <b>{figure(number(value), 3)}</b>"
        for name, value in list(found.items())[:_MOST_COMPONENTS]
    ]
    left = len(found) - len(parts)
    return ", ".join([*parts, *([f"and {left:,} more"] if left > 0 else [])]) or "no components"


def _facts(episode: dict[str, Any]) -> str:
    ended = episode.get("ended")
    facts = [_ENDS.get(ended, "") if isinstance(ended, str) else ""]
    facts.append(f"{_many(number(episode.get('tokens')), 'token')} written")
    if calls := number(episode.get("tool_calls")):
        failed = number(episode.get("failed_calls"))
        facts.append(_many(calls, "call") + (f", {count(failed)} failed" if failed else ""))
    if (advantage := number(episode.get("advantage"))) is not None:
        facts.append(f"advantage {figure(advantage, 3)}")
    return ", ".join(fact for fact in facts if fact)


def _many(value: float | None, noun: str) -> str:
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def _amiss(episode: dict[str, Any]) -> list[str]:
    """Return what was wrong with an episode, as HTML: failed rewards, broken harmony."""
    failed = mapping(mapping(episode.get("rewards")).get("failed"))
    lines = [f"{text(name, 60)} failed: {text(why, 300)}" for name, why in failed.items()]
    lines += [text(fault, 300) for fault in listing(episode.get("faults"))]
    left = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], *([f"and {left:,} more"] if left > 0 else [])]


def _said(messages: Sequence[object]) -> Iterator[str]:
    """Yield the messages as HTML; of a long episode the middle is left out and counted."""
    first = MOST_MESSAGES * 3 // 4
    left = len(messages) - MOST_MESSAGES
    for place, message in enumerate(messages):
        if left > 0 and place == first:
            yield f'<p class="note">{left:,} messages are left out here.</p>'
        if left <= 0 or place < first or place >= first + left:
            yield _message(mapping(message))


def _message(message: dict[str, Any]) -> str:
    """Return a message; calls and results of tools look unlike what is thought and said."""
    role, channel, recipient = (message.get(key) for key in ("role", "channel", "recipient"))
    is_assistant = role in (None, "assistant")
    if not is_assistant and role not in ("user", "system", "developer"):
        css, label = "result", f"result of {text(_tool(message), 80)}"
    elif is_assistant and recipient:
        css, label = "call", f"calls {text(recipient, 80)}"
    elif is_assistant:
        css = channel if channel in CHANNELS else "other"
        label = text(channel or "no channel", 40)
    else:
        css, label = "asked", text(role, 40)
    return (
        f'<div class="said {css}"><b>{label}</b>'
        f'<div class="words">{text(message.get("content", ""))}</div></div>'
    )


def _tool(message: dict[str, Any]) -> str:
    """Return the name of the tool whose result a message is: in harmony its author's."""
    name = message.get("name") or message.get("role")
    return str(name).removeprefix("functions.") if name != "tool" else "a tool"
