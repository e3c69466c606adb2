"""What happened to the rows of a source: the counts that preview and check-data show.

A report is kept beside the rendering it describes, as JSON, so that reading a cached data set still
says what was dropped from it and why.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

MOST_LISTED: Final = 1000
"""Rejected rows and places of special-token text that are kept by name; all are counted."""


@dataclass(slots=True)
class RowCounts:
    """Counts and places, added up over chunks and sources.

    Attributes:
        counts: ``rows``, ``rejected``, ``samples``, ``tokens``, ``trained_tokens``, ``too_long``,
            ``truncated``, ``nothing_to_train``, ``shared_turns`` (turns in the row of a later one),
            ``repeated_tokens`` (context rendered again for a later turn of the same row),
            ``special_text`` (special tokens spelled out in text, encoded as text),
            ``padding`` (null keys of tools and calls that a table put there, left out).
        formats: Rows by format.
        efforts: Samples by reasoning effort.
        channels: Trained tokens by channel.
        rejected: Messages, the first ones.
        special_text: Places with special-token text, the first ones.
        too_long: Places of samples that were too long, the first ones.
    """

    counts: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    efforts: Counter[str] = field(default_factory=Counter)
    channels: Counter[str] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)
    special_text: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)

    def add(self, other: RowCounts) -> None:
        """Add another report to this one."""
        for name in ("counts", "formats", "efforts", "channels"):
            getattr(self, name).update(getattr(other, name))
        for name in ("rejected", "special_text", "too_long"):
            listed = getattr(self, name)
            listed.extend(getattr(other, name)[: MOST_LISTED - len(listed)])

    def reject(self, message: str) -> None:
        """Count a row that cannot be trained on."""
        self.counts["rejected"] += 1
        if len(self.rejected) < MOST_LISTED:
            self.rejected.append(message)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "counts": dict(self.counts),
            "formats": dict(self.formats),
            "efforts": dict(self.efforts),
            "channels": dict(self.channels),
            "rejected": self.rejected,
            "special_text": self.special_text,
            "too_long": self.too_long,
        }

    @classmethod
    def from_json(cls, text: str) -> RowCounts:
        """Read what ``to_json`` wrote."""
        value = json.loads(text)
        return cls(
            counts=Counter(value["counts"]),
            formats=Counter(value["formats"]),
            efforts=Counter(value["efforts"]),
            channels=Counter(value["channels"]),
            rejected=value["rejected"],
            special_text=value["special_text"],
            too_long=value["too_long"],
        )
