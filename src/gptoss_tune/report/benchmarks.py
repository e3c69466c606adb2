"""Benchmarks that a run was asked in: suites by subjects, each figure with its uncertainty.

Read from ``RUN/benchmarks/NAME.json`` alone, of which any part may be missing or anybody's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_tune.grading.policy_table import HEADS, policy_rows
from gptoss_tune.report.parts.read import Run, listing, mapping
from gptoss_tune.report.parts.text import count, number, table, text

MOST_SHOWN = 8
"""Benchmarks, suites of each and subjects of each that a page shows."""


def benchmarks(run: Run) -> str:
    """Return the section of all benchmarks; empty where there are none."""
    shown = "".join(_benchmark(name, found) for name, found in run.benchmarks[:MOST_SHOWN])
    left = len(run.benchmarks) - MOST_SHOWN
    more = f'<p class="note">{left:,} more are in benchmarks/.</p>' if left > 0 else ""
    return shown + more


def _benchmark(name: str, found: dict[str, Any]) -> str:
    suites = [mapping(suite) for suite in listing(found.get("suites"))]
    names = [str(mapping(one).get("name", "")) for one in listing(found.get("subjects"))]
    if not suites or not names:
        return ""
    reference = text(found.get("reference", ""), 80)
    rows = [row for suite in suites[:MOST_SHOWN] for row in _rows(suite, names[:MOST_SHOWN])]
    heads = [
        *("suite", "subject", "right (95 %)", f"against {reference}", "pass@k", "tokens"),
        *("of thinking", "cut off", "healthy harmony", "in the rows of training"),
    ]
    cut = max(len(suites), len(names)) > MOST_SHOWN
    left = f'<p class="note">The rest is in benchmarks/{text(name, 90)}.json.</p>' if cut else ""
    about = text(found.get("created", ""), 40)
    return (
        f'<h3>{text(name, 80)} <span class="soft">{about}</span></h3>{table(heads, rows)}{left}'
        f"{_policies(suites[:MOST_SHOWN], names[:MOST_SHOWN])}{_required(found)}{_notes(found)}"
    )


def _rows(suite: Mapping[str, Any], names: list[str]) -> list[list[str]]:
    cells = mapping(suite.get("subjects"))
    questions = count(number(suite.get("questions")))
    lead = f'{text(suite.get("name", ""), 60)}<br><span class="soft">{questions} questions</span>'
    seen = _percent(mapping(suite.get("contamination")).get("share"))
    return [
        [lead if place == 0 else "", text(name, 60), *_cells(mapping(cells.get(name)), seen)]
        for place, name in enumerate(names)
    ]


def _policies(suites: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return a classifier's figures by policy; empty where no suite has any."""
    rows = [
        [text(suite.get("name", ""), 60), text(name, 60), *(text(cell, 80) for cell in row)]
        for suite in suites
        for name in names
        for row in policy_rows(
            mapping(mapping(suite.get("subjects")).get(name)).get("policies"),
        )
    ]
    return table([text(head) for head in ("suite", "subject", *HEADS)], rows) if rows else ""


def _cells(cell: Mapping[str, Any], seen: str) -> list[str]:
    if not cell:
        return ['<span class="bad">not graded</span>']
    pass_at = mapping(cell.get("pass_at"))
    shown = ", ".join(f"{text(k, 4)}: {_percent(value)}" for k, value in list(pass_at.items())[:8])
    return [
        f'{_percent(cell.get("score"))} <span class="soft">{_ends(cell.get("interval"))}</span>',
        _difference(mapping(cell.get("difference"))),
        shown or "–",
        count(number(cell.get("tokens"))),
        count(number(cell.get("thinking"))),
        *(_percent(cell.get(key)) for key in ("cut_off", "health")),
        seen,
    ]


def _difference(found: Mapping[str, Any]) -> str:
    value = number(found.get("value"))
    if value is None:
        return "–"
    word, css = ("within noise", "soft")
    if found.get("within_noise") is not True:
        word, css = ("better", "good") if value > 0 else ("worse", "bad")
    ends = _ends(found.get("interval"), sign="+")
    return f'{100 * value:+.1f} <span class="soft">{ends}</span><br><b class="{css}">{word}</b>'


def _percent(value: object) -> str:
    found = number(value)
    return "–" if found is None else f"{found:.1%}"


def _ends(interval: object, sign: str = "") -> str:
    ends = [number(end) for end in listing(interval)]
    if len(ends) != 2 or None in ends:
        return ""
    return "[{}]".format(", ".join(f"{100 * (end or 0):{sign}.0f}" for end in ends))


def _required(found: Mapping[str, Any]) -> str:
    lines = ""
    for one in map(mapping, listing(found.get("required"))[:MOST_SHOWN]):
        word, css = ("holds", "good") if one.get("holds") is True else ("missed", "bad")
        lines += f'<li><b class="{css}">{word}</b> {text(one.get("said", ""), 200)}</li>'
    return f'<ul class="lines">{lines}</ul>' if lines else ""


def _notes(found: Mapping[str, Any]) -> str:
    """Return how each subject was asked, and what was found about them."""
    lines = [
        f"{text(one.get('name', ''), 60)}: {text(one.get('refused') or one.get('protocol'), 400)}"
        for one in map(mapping, listing(found.get("subjects"))[:MOST_SHOWN])
    ]
    lines += [text(note, 300) for note in listing(found.get("notes"))[:MOST_SHOWN]]
    return f'<p class="note">{"<br>".join(lines)}</p>'
