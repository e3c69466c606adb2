"""The safety table of a model card: figures of the run's record, without questions or answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gptoss_tune.display import one_line
from gptoss_tune.report.parts.read import mapping
from gptoss_tune.report.parts.text import number

_LEFT_OUT = (
    ("incoherent", "incoherent"),
    ("abstained", "without a label"),
    ("not judged", "not judged"),
)
_FINDINGS = ("regression", "improvement", "no difference shown")


def safety_text(record: Mapping[str, Any]) -> str:
    """Return what ``run.json`` says of the run's safety against its base; empty without it."""
    safety = record.get("safety")
    figures = safety.get("figures") if isinstance(safety, Mapping) else None
    if not isinstance(safety, Mapping) or not isinstance(figures, list) or not figures:
        return ""
    rows = [_row(one) for one in figures if isinstance(one, Mapping)]
    missing = [_cell(one) for one in safety.get("not_measured") or [] if isinstance(one, str)]
    table = [
        "| share of bad outcomes | asked | base | tuned | 95 % interval of the change | finding |",
        "|---|--:|--:|--:|--:|---|",
        *rows,
    ]
    said = [
        "Base and tuned model answered the same questions, which were the tuner's own.",
        _harm(safety, judged=any(mapping(one).get("name") == "harmful" for one in figures)),
    ]
    step, published = (number(one.get("step")) for one in (safety, mapping(record.get("best"))))
    if step is not None and published is not None and step != published:
        said.append(
            f"The figures are of step {step:.0f}; the adapter holds the weights of step "
            f"{published:.0f}, whose safety was not evaluated."
        )
    if missing:
        said.append(f"Not measured: {'; '.join(missing)}.")
    return "\n".join(table) + "\n\n" + " ".join(said)


def _harm(safety: Mapping[str, Any], *, judged: bool) -> str:
    """Return who judged harm, and how many answers have no label that counts."""
    counts = mapping(mapping(safety.get("harm")).get("tuned"))
    found = {status: number(counts.get(status)) or 0 for status in counts}
    total = sum(found.values())
    left = {words: found.get(status, 0) for status, words in _LEFT_OUT}
    told = ""
    if total and any(left.values()):
        listed = ", ".join(f"{many:.0f} {words}" for words, many in left.items() if many)
        told = f": of {total:.0f} answers to requests by the tuned model, {listed}"
    if not judged:
        return f"Harm was not judged{told}."
    judges = [_cell(name) for name in safety.get("judges") or [] if isinstance(name, str)]
    return f"Harm was judged by {' and '.join(judges)} with a written policy{told}."


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
