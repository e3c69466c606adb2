"""Every format that can be trained on by its name: a row in, a conversation or a document out."""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.document import Document
from gptoss_tune.harmony.formats.detect import PAIRS, format_of
from gptoss_tune.harmony.formats.harmony import read_native
from gptoss_tune.harmony.formats.openai_chat import read_chat
from gptoss_tune.harmony.formats.plain.instruct import as_messages
from gptoss_tune.harmony.formats.plain.text import read_text
from gptoss_tune.harmony.formats.prompt import read_completion
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings


def read_row(
    row: dict[str, Any], source: str, reading: ReadSettings = AS_IT_STANDS
) -> Conversation | Document:
    """Return the conversation of a row for supervised fine-tuning, or its document of raw text.

    Raises:
        DataError: The row cannot be trained on; the message names file, line, reason and fix.
    """
    return read_known(format_of(row, source), row, source, reading)


def read_known(
    name: str, row: dict[str, Any], source: str, reading: ReadSettings = AS_IT_STANDS
) -> Conversation | Document:
    """Return what ``read_row`` does, of a row whose format is known.

    Raises:
        DataError: As ``read_row``.
    """
    if name == "text":
        return read_text(row, source, reading=reading)
    return read_as(name, row, source, reading)


def read_as(
    name: str, row: dict[str, Any], source: str, reading: ReadSettings = AS_IT_STANDS
) -> Conversation:
    """Return the conversation of a row whose format is known.

    Raises:
        DataError: As ``read_row``.
    """
    if name in PAIRS:
        raise DataError(
            f"{source}: the row is a preference pair ({', '.join(PAIRS[name])}); supervised "
            "fine-tuning needs one answer: set method.name to dpo to train on pairs, or name the "
            "column of the answer with a template"
        )
    if name == "text":
        raise DataError(
            f"{source}: the row is raw text, which has no answer; supervised fine-tuning alone "
            "trains on it: set method.name to sft, or write the row as messages"
        )
    if name == "prompt":
        raise DataError(
            f"{source}: the row is a prompt without an answer; add a 'completion', or 'messages'"
        )
    return _READERS[name](row, source, reading=reading)


def _read_instruct(
    row: dict[str, Any], source: str, *, reading: ReadSettings = AS_IT_STANDS
) -> Conversation:
    messages, places = as_messages(row, source)
    return read_chat(messages, source, reading=reading, places=places)


_READERS: Final = {
    "native": read_native,
    "chat": read_chat,
    "sharegpt": read_chat,
    "completion": read_completion,
    "instruct": _read_instruct,
}
