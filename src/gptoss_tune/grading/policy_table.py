"""The figures of policies as rows of text, for a terminal, a page, a card and a benchmark alike.

What is read may be a file of anybody: a value that is no figure is shown as a dash, and names are
left for the caller to escape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gptoss_tune.grading.policy_metrics import MACRO, RATES

HEADS: Final = (
    *("policy", "rows", "violations", "F1", "precision", "recall", "specificity", "abstained"),
)
"""Headings of ``policy_rows``."""
MACRO_NAME: Final = "macro average"
MOST_POLICIES: Final = 64
"""Policies that a table shows."""


def policy_rows(report: object, before: object = None) -> list[list[str]]:
    """Return a row for each policy and one for the average; none where nothing was measured.

    A figure of a policy has its 95 % interval: ``0.92 (0.81-0.98)``; with ``before`` it is
    ``0.31 → 0.92 (0.81-0.98)``.

    Args:
        report: From ``policies_report``, or what a file says it was.
        before: The same of an earlier evaluation.
    """
    now, then = _mapping(report), _mapping(before)
    policies, earlier = _mapping(now.get("by_policy")), _mapping(then.get("by_policy"))
    rows = [
        _row(str(name), _mapping(one), _mapping(earlier.get(name)))
        for name, one in list(policies.items())[:MOST_POLICIES]
    ]
    if not rows:
        return []
    if len(policies) > MOST_POLICIES:
        rows.append([f"and {len(policies) - MOST_POLICIES} more"])
    if len(policies) > 1:
        rows.append(_row(MACRO_NAME, _mapping(now.get(MACRO)), _mapping(then.get(MACRO))))
    return rows


def _row(name: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    intervals = _mapping(now.get("intervals"))
    cells = [_figure(now.get(rate), then, rate, intervals.get(rate)) for rate in RATES]
    counts = [_count(now.get(key)) for key in ("rows", "positives")]
    abstained = _count(now.get("abstained"))
    if then:
        abstained = f"{_count(then.get('abstained'))} → {abstained}"
    return [name, *counts, *cells, abstained]


def _figure(value: object, then: Mapping[str, Any], rate: str, interval: object) -> str:
    text = _share(value)
    if isinstance(interval, list) and len(interval) == 2 and text != "–":
        text = f"{text} ({'-'.join(map(_share, interval))})"
    return f"{_share(then.get(rate))} → {text}" if then else text


def _share(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    return f"{value:.2f}" if 0 <= value <= 1 else "–"


def _count(value: object) -> str:
    whole = type(value) is int and 0 <= value < 10**12
    return f"{value:,}" if whole else "–"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
