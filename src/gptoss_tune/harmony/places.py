"""Places of rows, ``file:line``, as messages name them: the first of many, by their lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

MOST_PLACES: Final = 3
"""First places that a line names."""


@dataclass(slots=True)
class Overlap:
    """Rows that are there more than once: how many, and the first of them by place."""

    rows: int = 0
    places: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the overlap as JSON values."""
        return {"rows": self.rows, "places": self.places}


def first_of(places: Sequence[str], total: int) -> str:
    """Return `` (first lines 1, 2, 3)``: the first of ``total`` places, nothing for none.

    Args:
        places: As ``file:line``, in their order.
        total: How many there are in all.
    """
    shown = places[:MOST_PLACES]
    if not shown:
        return ""
    first = "first " if total > len(shown) else ""
    files = {place.rpartition(":")[0] for place in shown}
    numbers = [place.rpartition(":")[2] for place in shown]
    if len(files) > 1 or not all(number[:1].isdigit() for number in numbers):
        return f" ({first}{', '.join(shown)})"
    # Tables have no lines, nor have datasets of the Hub.
    (file,) = files
    what = "line" if file.endswith(_OF_LINES) else "row"
    return f" ({first}{what}{'s' if len(shown) > 1 else ''} {', '.join(numbers)})"


_OF_LINES: Final = tuple(
    f"{suffix}{compressed}"
    for suffix in (".jsonl", ".ndjson", ".json", ".csv", ".txt")
    for compressed in ("", ".gz", ".zst")
)
