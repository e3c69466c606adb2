"""What happened to the rows of a source: the counts that preview and check-data show.

A report is kept beside the rendering it describes, as JSON, so that reading a cached data set still
says what was dropped from it and why.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from gptoss_tune.harmony.places import MOST_PLACES, first_of
from gptoss_tune.harmony.reading import Notes

MOST_LISTED: Final = 1000
"""Rejected rows and places of special-token text that are kept by name; all are counted."""
MOST_KINDS: Final = 100
"""Kinds of mistakes that are told apart; all further ones are one."""
FURTHER_MISTAKES: Final = "mistakes of further kinds, which are not told apart"
MOST_SENTENCES: Final = 100
"""Different warnings, and remarks, that are kept: each row may have keys of its own."""
FURTHER_SENTENCES: Final = "further findings of other kinds, which are not listed"


@dataclass(slots=True)
class Mistake:
    """One kind of mistake: the message of its first row, how many rows have it, and the first."""

    message: str
    rows: int
    places: list[str]

    def __str__(self) -> str:
        """Return the message; that of several rows without its place, with their number."""
        if self.rows == 1:
            return self.message
        first = self.places[0]
        said = self.message.removeprefix(first)
        files = {place.rpartition(":")[0] for place in self.places}
        if said != self.message:
            said = f"{files.pop()}{said}" if len(files) == 1 else said.removeprefix(": ")
        return f"{said}: {self.rows:,} rows{first_of(self.places, self.rows)}"


@dataclass(slots=True)
class RowCounts:
    """Counts and places, added up over chunks and sources.

    Attributes:
        counts: ``rows``, ``rejected``, ``samples``, ``tokens``, ``trained_tokens``, ``too_long``,
            ``truncated``, ``nothing_to_train``, ``shared_turns`` (turns in the row of a later one),
            ``repeated_tokens`` (context rendered again for a later turn of the same row),
            ``special_text`` (special tokens spelled out in text, encoded as text),
            ``without_thoughts`` (rows that do not think and name no effort, where it is not low),
            ``documents`` of raw text, ``cut_documents`` (those in several samples),
            ``padding`` (null keys of tools and calls that a table put there, left out); of pairs
            ``ties`` and ``equal_answers`` (both dropped), ``differ_in_length`` (one answer is the
            beginning of the other), ``lost_analysis`` (the rejected answer alone thinks).
        formats: Rows by format.
        efforts: Samples by reasoning effort.
        channels: Trained tokens by channel.
        rejected: Messages, the first ones.
        mistakes: Their kinds: messages that differ in the place and in what was got only.
        special_text: Places with special-token text, the first ones.
        too_long: Places of samples that were too long, the first ones.
        shortest_too_long: Tokens of the shortest of these, 0 for none or none tokenised.
        warnings: How often something of a row was lost or may be meant otherwise, by sentence.
        remarks: How often something holds that a server does alike, by sentence.
        first_places: The first rows in which each of these sentences held.
        places: The first places of some of the counts.
        labels: Rows for a policy classifier, by policy and label.
    """

    counts: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    efforts: Counter[str] = field(default_factory=Counter)
    channels: Counter[str] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)
    mistakes: dict[str, Mistake] = field(default_factory=dict)
    special_text: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    shortest_too_long: int = 0
    warnings: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    first_places: dict[str, list[str]] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, other: RowCounts) -> None:
        """Add another report to this one."""
        if other.shortest_too_long:
            shortest = self.shortest_too_long or other.shortest_too_long
            self.shortest_too_long = min(shortest, other.shortest_too_long)
        for name in ("warnings", "remarks"):
            for sentence, number in getattr(other, name).items():
                self._count(name, sentence, number, other.first_places[sentence])
        for kind, mistake in other.mistakes.items():
            self._mistaken(kind, mistake)
        for name in ("counts", "formats", "efforts", "channels"):
            getattr(self, name).update(getattr(other, name))
        for name in ("rejected", "special_text", "too_long"):
            listed = getattr(self, name)
            listed.extend(getattr(other, name)[: MOST_LISTED - len(listed)])
        for policy, labels in other.labels.items():
            self._label(policy, labels)
        for name, places in other.places.items():
            listed = self.places.setdefault(name, [])
            listed.extend(places[: MOST_LISTED - len(listed)])

    def count_at(self, name: str, place: str) -> None:
        """Count something of a row, and list the place among the first ones."""
        self.counts[name] += 1
        listed = self.places.setdefault(name, [])
        if len(listed) < MOST_LISTED:
            listed.append(place)

    def note(self, notes: Notes, place: str) -> None:
        """Count what is worth telling about the row at ``place``."""
        for sentence, number in notes.warnings.items():
            self._count("warnings", sentence, number, [place])
        for sentence, number in notes.remarks.items():
            self._count("remarks", sentence, number, [place])
        if notes.label is not None:
            self._label(notes.label[0], Counter([notes.label[1]]))

    def _label(self, policy: str, labels: Counter[str]) -> None:
        """Count labels of a policy; past the bound of policies they are counted nowhere."""
        if policy in self.labels or len(self.labels) < MOST_SENTENCES:
            self.labels.setdefault(policy, Counter()).update(labels)

    def _count(self, name: str, sentence: str, number: int, places: list[str]) -> None:
        """Count a sentence; past the bound all further ones are one."""
        counter = getattr(self, name)
        if sentence not in counter and len(counter) >= MOST_SENTENCES:
            sentence = FURTHER_SENTENCES
        counter[sentence] += number
        first = self.first_places.setdefault(sentence, [])
        first.extend(places[: MOST_PLACES - len(first)])

    def reject(self, message: str, place: str) -> None:
        """Count a row that cannot be trained on."""
        self.counts["rejected"] += 1
        if len(self.rejected) < MOST_LISTED:
            self.rejected.append(message)
        kind = _VALUES.sub("", message.removeprefix(place))
        self._mistaken(kind, Mistake(message, 1, [place]))

    def _mistaken(self, kind: str, mistake: Mistake) -> None:
        if kind not in self.mistakes and len(self.mistakes) >= MOST_KINDS:
            kind, mistake = "others", replace(mistake, message=FURTHER_MISTAKES)
        known = self.mistakes.get(kind)
        if known is None:
            self.mistakes[kind] = replace(mistake, places=mistake.places[:MOST_PLACES])
        else:
            known.rows += mistake.rows
            known.places.extend(mistake.places[: MOST_PLACES - len(known.places)])

    def lines(self, name: Literal["warnings", "remarks"], label: str) -> list[str]:
        """Return a line for each sentence of a kind: how often, where first, in which source."""
        return [
            f"{label}: {number:,} times: {sentence}{first_of(self.first_places[sentence], number)}"
            if number > 1
            else f"{label}: {sentence} ({self.first_places[sentence][0]})"
            for sentence, number in getattr(self, name).most_common()
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "counts": dict(self.counts),
            "formats": dict(self.formats),
            "efforts": dict(self.efforts),
            "channels": dict(self.channels),
            "rejected": self.rejected,
            "mistakes": {kind: asdict(mistake) for kind, mistake in self.mistakes.items()},
            "special_text": self.special_text,
            "too_long": self.too_long,
            "shortest_too_long": self.shortest_too_long,
            "warnings": dict(self.warnings),
            "remarks": dict(self.remarks),
            "first_places": self.first_places,
            **({"places": self.places} if self.places else {}),
            **({"labels": {p: dict(n) for p, n in self.labels.items()}} if self.labels else {}),
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
            mistakes={kind: Mistake(**mistake) for kind, mistake in value["mistakes"].items()},
            special_text=value["special_text"],
            too_long=value["too_long"],
            shortest_too_long=value["shortest_too_long"],
            warnings=Counter(value["warnings"]),
            remarks=Counter(value["remarks"]),
            first_places=value["first_places"],
            places=value.get("places", {}),
            labels={p: Counter(n) for p, n in value.get("labels", {}).items()},
        )


_VALUES: Final = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9]+")
