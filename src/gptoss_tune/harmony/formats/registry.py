"""Every format that can be trained on by its name: a row in, a conversation or a document out.

Beside what is trained stands what is asked: a row's conversation up to where the assistant answers.
"""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation, Message
from gptoss_tune.harmony.document import Document
from gptoss_tune.harmony.fields import shown, take_listed
from gptoss_tune.harmony.formats.detect import PAIRS, QUESTIONS, format_of
from gptoss_tune.harmony.formats.harmony import read_native
from gptoss_tune.harmony.formats.openai_chat import read_chat
from gptoss_tune.harmony.formats.plain.instruct import as_messages
from gptoss_tune.harmony.formats.plain.text import read_text
from gptoss_tune.harmony.formats.prompt import read_completion, read_prompt
from gptoss_tune.harmony.formats.sharegpt import is_of_assistant
from gptoss_tune.harmony.reading import AS_IT_STANDS, GRADING, ReadSettings

_NO_TEMPLATES: Final = (
    "Files of prompts have no templates: write the question under the key prompt, and an answer to "
    "grade by under answer"
)
_KNOWN_COLUMNS: Final = frozenset({"messages", "conversations", "prompt", "chosen", "rejected"})


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


def read_unanswered(
    row: dict[str, Any],
    source: str,
    reading: ReadSettings = AS_IT_STANDS,
    *,
    other_columns: str = _NO_TEMPLATES,
) -> Conversation:
    """Return the conversation of a row up to where the assistant is to answer.

    It is any row that training reads, or one that ends there already. One that holds the answer is
    cut back to its last question, so that conversations serve as prompts too.

    Args:
        row: As its file has it.
        source: Its place, for messages.
        reading: How rows are read.
        other_columns: What to do about a row that has none of the known columns.

    Raises:
        DataError: The row is in no known format, or asks nothing.
    """
    if not row.keys() & _KNOWN_COLUMNS:
        columns = ", ".join(shown(key) for key in list(row)[:8]) or "none"
        raise DataError(
            f"{source}: no known columns (got {columns}); expected messages, conversations or "
            f"prompt. {other_columns}"
        )
    name = format_of(row, source, templates=False)
    if name in PAIRS:
        raise DataError(
            f"{source}: the row is a preference pair ({', '.join(PAIRS[name])}); expected a "
            "question that is to be answered: remove both answers, or train on pairs (method.name: "
            "dpo)"
        )
    messages = take_listed(row.get("messages"), source, "messages")
    if name == "prompt" or (isinstance(messages, list) and not _is_answered(messages, reading)):
        return read_prompt(row, source, reading=reading)
    conversation = read_as(name, row, source, reading)
    conversation.messages = _without_answer(conversation.messages)
    if not conversation.messages:
        raise DataError(f"{source}: the row asks nothing; a prompt needs a message of the user")
    return conversation


def read_to_play(
    row: dict[str, Any], source: str, reading: ReadSettings = AS_IT_STANDS, *, own: bool = False
) -> Conversation:
    """Return what an episode of a row is asked with: as ``read_unanswered``, of more columns.

    A row with a column of a question, such as ``problem``, or with question and answer asks too.

    Args:
        row: As its file has it, or as templates write it.
        source: Its place, for messages.
        reading: How rows are read.
        own: Whether an environment of the user's own asks: a row without a prompt has a
            conversation without messages then.

    Raises:
        DataError: The row is in no known format, or asks nothing.
    """
    there = {key for key, value in row.items() if value is not None}
    if there & _KNOWN_COLUMNS:
        return read_unanswered(row, source, reading)
    # What grades is no column of the question: "answer" beside "output" is the right one.
    bare = {key: value for key, value in row.items() if key not in GRADING}
    question = _question(bare, source)
    if question is not None:
        return read_unanswered(question, source, reading)
    if own and not _asks(row, source):
        return Conversation(source, reading=reading)
    row = bare if _asks(bare, source) else row
    conversation = read_as(format_of(row, source), row, source, reading)
    conversation.messages = _without_answer(conversation.messages)
    return conversation


def _question(row: dict[str, Any], source: str) -> dict[str, Any] | None:
    """Return a row with its one column of a question as its prompt; ``None`` without one."""
    asking = [name for name in QUESTIONS if isinstance(row.get(name), str)]
    if len(asking) != 1 or _asks(row, source):
        return None
    rest = {key: value for key, value in row.items() if key != asking[0]}
    return {**rest, "prompt": row[asking[0]]}


def _asks(row: dict[str, Any], source: str) -> bool:
    try:
        return format_of(row, source) == "instruct"
    except DataError:
        return False


def _is_answered(messages: list[Any], reading: ReadSettings) -> bool:
    """Whether the assistant has the last word, by whatever name the recipe has it."""
    last = messages[-1] if messages else None
    if not isinstance(last, dict):
        return False
    author = last.get("author")
    holder = author if isinstance(author, dict) else last
    said = holder.get("from") if holder.get("role") is None else holder["role"]
    return is_of_assistant(reading.role(said))


def _without_answer(messages: list[Message]) -> list[Message]:
    """Drop what follows the last message of the user: calls and results belong to the answer."""
    asked = [n for n, message in enumerate(messages) if message.header.role == "user"]
    return messages[: asked[-1] + 1] if asked else []


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
