"""What is told of a split by what was counted of it: rows dropped, cut, repeated, left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptoss_tune.harmony.dataset.counts import first_of
from gptoss_tune.harmony.dataset.pair_statistics import NOUNS, figure_warnings, pair_warnings

if TYPE_CHECKING:
    from gptoss_tune.harmony.dataset.selection import Split
    from gptoss_tune.harmony.dataset.statistics import SplitStatistics


def split_warnings(name: Split, split: SplitStatistics) -> list[str]:
    """Return what a run survives and its owner should know of a split, a line each."""
    report, (sample, row) = split.report, NOUNS[split.rows]
    counts, places = report.counts, report.places
    pairs = split.rows == "pair"
    together = " (both branches together)" if pairs else ""
    # Several answers to one question are what preferences are made of.
    asked_again = split.same_prompts.rows if split.rows == "conversation" else 0
    said = (
        (counts["too_long"], sample, f"dropped, too long{together}", report.too_long),
        (counts["truncated"], sample, "cut, too long", places.get("truncated", [])),
        (
            counts["nothing_to_train"],
            row,
            "without anything to train",
            places.get("nothing_to_train", []),
        ),
        *((*one, []) for one in (pair_warnings(counts) if pairs else ())),
        (
            counts["special_text"],
            "special token",
            "spelled out in text, encoded as text",
            report.special_text,
        ),
        (counts["padding"], "null key", "of tools and calls left out, padding of a table", []),
        (split.duplicates.rows, row, "equal to an earlier one", split.duplicates.places),
        (asked_again, row, "with the question of an earlier one", split.same_prompts.places),
    )
    found = [
        # A row may spell several special tokens.
        f"{name}: {counted(number, thing, what)}"
        f"{first_of(where, number if thing in (sample, row) else len(where))}"
        for number, thing, what, where in said
        if number
    ]
    if split.preferences is not None:
        found += [f"{name}: {line}" for line in figure_warnings(split.preferences, name)]
    return found + split.findings


def counted(number: int, thing: str, what: str = "") -> str:
    """Return a number of things in words."""
    return f"{number:,} {thing}{'s' if number != 1 else ''} {what}".rstrip()
