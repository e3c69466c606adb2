"""Preference pairs: two answers to one prompt, the first preferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.formats.detect import format_of
from gptoss_tune.harmony.formats.prompt import join_answer
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, the first preferred."""

    chosen: Conversation
    rejected: Conversation

    @property
    def tie(self):
        return False

    @property
    def equal(self):
        return [m[:2] for m in self.chosen.messages] == [m[:2] for m in self.rejected.messages]

    @property
    def differs_in_length_only(self):
        return False

    @property
    def lost_analysis(self):
        return self.rejected.thinks and not self.chosen.thinks


def read_preference(
    row: dict[str, Any], source: str, *, reading: ReadSettings = AS_IT_STANDS
) -> Preference:
    """Return both conversations of a preference pair; each ends with its own answer.

    Raises:
        DataError: The row is not such a pair.
    """
    if format_of(row, source) != "preference":
        raise DataError(f"{source}: the row has no pair of 'chosen' and 'rejected'; add both")
    both = [
        join_answer(row, row[key], key, source, reading=reading) for key in ("chosen", "rejected")
    ]
    return Preference(*both)
