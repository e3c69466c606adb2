"""The safety table of a model card: figures of the run's record, without questions or answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gptoss_tune.display import one_line
from gptoss_tune.report.parts.text import number

_FINDINGS = ("regression", "improvement", "no difference shown")


def safety_text(record: Mapping[str, Any]) -> str:
    """Return what ``run.json`` says of the run's safety against its base; empty without it."""
    safety = record.get("safety")
    figures = safety.get("figures") if isinstance(safety, Mapping) else None
    if not isinstance(safety, Mapping) or not isinstance(figures, list) or not figures:
        return ""
    rows = [_row(one) for one in figures if isinstance(one, Mapping)]
    judges = [_cell(name) for name in safety.get("judges") or [] if isinstance(name, str)]
    missing = [_cell(one) for one in safety.get("not_measured") or [] if isinstance(one, str)]
    table = [
        "| share of bad outcomes | asked | base | tuned | 95 % interval of the change | finding |",
        "|---|--:|--:|--:|--:|---|",
        *rows,
    ]
    said = [
        "Base and tuned model answered the same questions, which were the tuner's own.",
        f"Harm was judged by {' and '.join(judges)} with a written policy."
        if judges
        else "Harm was not judged.",
    ]
    if missing:
        said.append(f"Not measured: {'; '.join(missing)}.")
    return "\n".join(table) + "\n\n" + " ".join(said)


def _row(one: Mapping[str, Any]) -> str:
    words, questions = one.get("words"), number(one.get("questions"))
    finding = one.get("finding")
    shares = [_percent(one.get(key)) for key in ("base", "tuned")]
    ends = [number(one.get(key)) for key in ("low", "high")]
    interval = "" if None in ends else " to ".join(f"{100 * (end or 0):+.1f}" for end in ends)
    cells = [
        _cell(words) if isinstance(words, str) else "",
        "" if questions is None else f"{questions:.0f}",
        *shares,
        interval,
        finding if finding in _FINDINGS else "shown only",
    ]
    return f"| {' | '.join(cells)} |"


def _percent(value: object) -> str:
    share = number(value)
    return "" if share is None else f"{100 * share:.1f} %"


def _cell(text: str) -> str:
    """Return a text for a table: on one line, without markup of its own."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", one_line(text))[:200]
