"""Raw text: ``{"text": ...}``, or a whole .txt file, becomes one document.

A column ``text`` beside a label, a summary or an answer may be the question of it, so such a row is
refused with both ways to name its columns; beside an id, a URL or other keys that nothing reads it
is the document.
"""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.document import Document
from gptoss_tune.harmony.fields import shown, take_text, take_weight
from gptoss_tune.harmony.guards.rows import note_traces
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings

TARGETS: Final = (
    *("label", "labels", "target", "targets", "summary", "highlights", "translation"),
    *("answers", "sentiment", "class", "category"),
)
"""Columns that may be the answer to a ``text`` beside them."""
_READ: Final = frozenset({"text", "weight"})


def is_text(row: dict[str, Any]) -> bool:
    """Whether a row, which no conversation is in, has a text; ``refuse_target`` may refuse it."""
    return isinstance(row.get("text"), str)


def target_of(row: dict[str, Any]) -> str | None:
    """Return the column that may be the answer to a row's text, None where there is none."""
    return next((name for name in TARGETS if row.get(name) is not None), None)


def read_text(
    row: dict[str, Any], source: str, *, reading: ReadSettings = AS_IT_STANDS
) -> Document:
    """Return the document of a row.

    Raises:
        DataError: It has no text, or a weight that is none.
    """
    text = take_text(row["text"], source, "text")
    if not text.strip():
        raise DataError(f"{source}: text is empty; add the text, or remove the row")
    document = Document(source, text, reading=reading)
    if row.get("weight") is not None:
        document.weight = take_weight(row["weight"], source, "weight")
    unread = [
        key
        for key, value in row.items()
        if key not in _READ and key not in reading.ignored_keys and value not in (None, "", [], {})
    ]
    if unread:
        keys = ", ".join(map(shown, unread))
        document.notes.warnings[
            f"keys beside a text are not read ({keys}); remove them, or name them in "
            "data.ignored_keys"
        ] += 1
    note_traces([text], "a text", document.notes)
    return document
