"""Prompt with completion, and a prompt alone: chat rows in other clothes."""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.fields import kind, shown, take_text
from gptoss_tune.harmony.formats.harmony import is_native, read_native
from gptoss_tune.harmony.formats.openai_chat import read_chat

_PASSED_ON: Final = (
    "tools",
    "response_format",
    "reasoning_effort",
    "builtin_tools",
    "weight",
    "channel_weights",
)


def read_prompt(row: dict[str, Any], source: str) -> Conversation:
    """Return the conversation of a prompt that is still to be answered.

    Raises:
        DataError: The row has no usable prompt.
    """
    if row.get("prompt") is None and row.get("messages") is None:
        raise DataError(f"{source}: the row has no 'prompt'; add text or a list of messages")
    messages = row.get("messages")
    if messages is None:
        messages = _as_messages(row["prompt"], "user", "prompt", source)
    # What is no list of messages is told by the reader of messages.
    if row.get("system") is not None and isinstance(messages, list):
        system = take_text(row["system"], source, "system")
        messages = [{"role": "system", "content": system}, *messages]
    reader = read_native if is_native(messages) else read_chat
    return reader({**passed_on(row), "messages": messages}, source, complete=False)


def read_completion(row: dict[str, Any], source: str) -> Conversation:
    """Return the conversation of a prompt with its completion.

    Raises:
        DataError: One of the two is not text and no list of messages.
    """
    return join_answer(row, row["completion"], "completion", source)


def join_answer(row: dict[str, Any], answer: object, key: str, source: str) -> Conversation:
    """Join prompt and answer into one row; only the answer's messages are trained.

    Raises:
        DataError: One of the two is not text and no list of messages.
    """
    prompt = row.get("prompt")
    before = [] if prompt is None else _as_messages(prompt, "user", "prompt", source)
    if row.get("system") is not None:
        system = take_text(row["system"], source, "system")
        before = [{"role": "system", "content": system}, *before]
    after = _as_messages(answer, "assistant", key, source)
    if row.get("thinking") is not None and isinstance(answer, str):
        after[0]["thinking"] = row["thinking"]
    if prompt is not None:
        before = [
            {**message, "weight": 0} if message.get("role") == "assistant" else message
            for message in before
        ]
    joined = {**passed_on(row), "messages": [*before, *after]}
    reader = read_native if is_native(joined["messages"]) else read_chat
    return reader(joined, source)


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


def passed_on(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that mean the same in every format."""
    return {key: row[key] for key in _PASSED_ON if row.get(key) is not None}
