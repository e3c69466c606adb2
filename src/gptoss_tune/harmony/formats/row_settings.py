"""What stands beside the messages of a row, read alike for every format."""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation, take_settings
from gptoss_tune.harmony.fields import take_listed, take_text
from gptoss_tune.harmony.formats.keys import note_row_keys
from gptoss_tune.harmony.policy_label import read_judged
from gptoss_tune.harmony.reading import GRADING
from gptoss_tune.harmony.tools import response_formats, take_tools

_AS_TEXT: Final = ("response_format", "builtin_tools", "channel_weights")
"""Columns that a table may hold as JSON text, besides tools and messages."""


def read_settings(row: dict[str, Any], column: str, conversation: Conversation) -> None:
    """Read tools, answer format, settings and the ``system`` column of a row.

    Args:
        row: The parsed row.
        column: Where its messages stand.
        conversation: Gets them, and a note for each key that is not read.

    Raises:
        DataError: One of them cannot be used.
    """
    at = conversation.source
    row = {**row, **{key: take_listed(row[key], at, key) for key in _AS_TEXT if key in row}}
    take_settings(row, conversation)
    take_tools(row, conversation)
    conversation.response_formats = response_formats(row.get("response_format"), at)
    if row.get("system") is not None:
        conversation.add_instructions(take_text(row["system"], at, "system"))
    graded = row.get("policy") is not None or row.get("grader") is not None
    if graded:
        _take_judged(row, conversation)
    note_row_keys(row, (column, *(GRADING if graded else ())), conversation)


def _take_judged(row: dict[str, Any], conversation: Conversation) -> None:
    """Keep what a row says for a grader of policies; training does not need it, so it may be bad.

    An evaluation, which does, refuses such a row with its reason.
    """
    try:
        conversation.judged = read_judged(row, conversation.source)
    except DataError:
        conversation.notes.warnings[
            "the grader of a row has settings that cannot be used, so its label is not looked at; "
            "name the file in evaluation.prompts to be told why, or remove the key"
        ] += 1
