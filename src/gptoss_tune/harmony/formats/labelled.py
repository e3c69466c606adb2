"""Labelled answers: one answer to a prompt, and whether it is a good one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation, cut_turns
from gptoss_tune.harmony.fields import shown
from gptoss_tune.harmony.formats.answers import (
    begins_with,
    cut,
    is_whole,
    read_answered,
    read_asked,
    refuse_channel_weights,
    take_over,
    take_piece,
)
from gptoss_tune.harmony.formats.detect import format_of, pair_format
from gptoss_tune.harmony.formats.plain.instruct import as_prompt_and_completion
from gptoss_tune.harmony.formats.registry import read_as
from gptoss_tune.harmony.reading import AS_IT_STANDS, THINKING, ReadSettings

_SPELLED: Final = {"true": True, "1": True, "false": False, "0": False}
"""How a table that holds nothing but text writes a label."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """An answer to a prompt, and what it is worth.

    Attributes:
        conversation: The prompt, whose messages have weight 0, and the answer.
        desirable: Whether the answer is a good one.
        prompt_length: How many messages the prompt has.
    """

    conversation: Conversation
    desirable: bool
    prompt_length: int = 0


def read_labelled(
    row: dict[str, Any], source: str, *, reading: ReadSettings = AS_IT_STANDS
) -> Labelled:
    """Return the answer of a row with its ``label``: true for a good one, false for a bad one.

    ``prompt`` and ``completion`` say where the answer begins; of a whole conversation it is the
    last turn of the assistant.

    Args:
        row: The parsed row.
        source: ``file:line``, the start of every message about it.
        reading: How the recipe has rows read.

    Raises:
        DataError: The row has no label or no answer, or the answer cannot be trained on.
    """
    row = as_prompt_and_completion({key: value for key, value in row.items() if value is not None})
    name = _format(row, source)
    refuse_channel_weights(row, source)
    desirable = _label(row.pop("label", None), source)
    if name == "completion":
        conversation, length = _completion(row, source, reading)
    else:
        conversation = read_as(name, row, source, reading)
        length = _last_turn(conversation)
    cut(conversation, length, "completion" if name == "completion" else "the last turn")
    return Labelled(conversation, desirable, length)


def _format(row: dict[str, Any], at: str) -> str:
    """Return the format of the conversation that is labelled; refuse a row of another kind."""
    if pair_format(row) is not None:
        raise DataError(
            f"{at}: the row is a preference pair, and kto takes one answer with a label; set "
            "method.name to dpo, or write one row for each answer"
        )
    if not row.keys() & {"prompt", "messages", "conversations"}:
        columns = ", ".join(shown(key) for key in list(row)[:8]) or "none"
        raise DataError(
            f"{at}: no known columns (got {columns}); expected prompt, completion and label: name "
            "other columns in the recipe with templates (columns: {prompt: ..., completion: ..., "
            "label: ...})"
        )
    name = format_of(row, at)
    if name == "prompt":
        raise DataError(f"{at}: the row is a prompt without an answer; add completion and label")
    return name


def _label(value: object, at: str) -> bool:
    if value is None:
        raise DataError(
            f"{at}: the answer has no label; add true (a good answer) or false (a bad one), or set "
            "method.name to sft to train on every answer"
        )
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _SPELLED:
        return _SPELLED[value.strip().lower()]
    raise DataError(
        f"{at}: label is {shown(value)}; expected true or 1 for a good answer, false or 0 for a "
        "bad one: map other words in the recipe (columns: {label: \"{{ label == 'good' }}\", ...})"
    )


def _completion(row: dict[str, Any], at: str, reading: ReadSettings) -> tuple[Conversation, int]:
    """Return the conversation of a prompt with its completion, and the prompt's length."""
    beside = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
    prompt = take_piece(row["prompt"], "user", "prompt", at)
    answer = take_piece(row["completion"], "assistant", "completion", at)
    if answer.is_text:
        answer.messages[0] |= {key: beside.pop(key) for key in THINKING if key in beside}
    asked = read_asked(prompt, beside, at, reading)
    whole = is_whole(answer, prompt, reading)
    conversation = read_answered(None if whole else prompt, answer, beside, at, reading)
    if whole:
        take_over(conversation, asked, beside.get("system"))
    length = len(asked.messages)
    following = conversation.messages[length : length + 1]
    if not begins_with(conversation, asked) or not (following and following[0].is_assistant):
        raise DataError(
            f"{at}: completion does not begin with the assistant's message, and does not repeat "
            "the prompt before it; begin it with the answer"
        )
    return conversation, length


def _last_turn(conversation: Conversation) -> int:
    """Return where the last turn of the assistant begins."""
    messages = conversation.messages
    turn = cut_turns([message.header for message in messages])[-1]
    length = next(index for index in turn if messages[index].is_assistant)
    if not length:
        raise DataError(
            f"{conversation.source}: the answer has no prompt; add the user's message before it"
        )
    return length
