"""Prompt with completion, and a prompt alone: chat rows in other clothes."""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.fields import kind, shown, take_listed
from gptoss_tune.harmony.formats.harmony import is_native, read_native
from gptoss_tune.harmony.formats.openai_chat import read_chat
from gptoss_tune.harmony.reading import AS_IT_STANDS, THINKING, WEIGHTS, ReadSettings

_ANSWERS: Final = ("prompt", "completion", "chosen", "rejected")


def read_prompt(
    row: dict[str, Any], source: str, *, reading: ReadSettings = AS_IT_STANDS
) -> Conversation:
    """Return the conversation of a prompt that is still to be answered.

    Raises:
        DataError: The row has no usable prompt.
    """
    messages = take_listed(row.get("messages"), source, "messages")
    if row.get("prompt") is None and messages is None:
        raise DataError(f"{source}: the row has no 'prompt'; add text or a list of messages")
    if messages is None:
        messages = _as_messages(row["prompt"], "user", "prompt", source)
    reader = read_native if is_native(messages) else read_chat
    asked = {**_beside(row), "messages": messages}
    return reader(asked, source, complete=False, reading=reading)


def read_completion(
    row: dict[str, Any], source: str, *, reading: ReadSettings = AS_IT_STANDS
) -> Conversation:
    """Return the conversation of a prompt with its completion, which alone is trained.

    Raises:
        DataError: One of the two is not text and no list of messages.
    """
    before = _as_messages(row["prompt"], "user", "prompt", source)
    after = _as_messages(row["completion"], "assistant", "completion", source)
    beside = _beside(row)
    if isinstance(row["completion"], str):
        after[0] |= {name: beside.pop(name) for name in THINKING if name in beside}
    # A prompt's own weights go: with two of them, a message would be refused for their quarrel.
    before = [
        {**{name: value for name, value in message.items() if name not in WEIGHTS}, "weight": 0}
        for message in before
    ]
    joined = {**beside, "messages": [*before, *after]}
    reader = read_native if is_native(joined["messages"]) else read_chat
    return reader(joined, source, reading=reading)


def _as_messages(value: object, role: str, key: str, source: str) -> list[dict[str, Any]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise DataError(f"{source}: {key} is {shown(value)}; expected text or a list of messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise DataError(f"{source}: {key}[{index}] is {kind(message)}; expected a message")
    return list(value)


def _beside(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that stand beside prompt and answer; null says nothing."""
    return {key: value for key, value in row.items() if key not in _ANSWERS and value is not None}
