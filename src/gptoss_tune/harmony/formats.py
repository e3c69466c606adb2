"""Which format a row is in, and the formats that are chat rows in other clothes.

A row is recognised by its columns: ``messages`` (OpenAI chat, or harmony's own when a message names
its channel), ``conversations`` (ShareGPT), ``prompt`` with ``completion``, ``chosen`` with
``rejected`` (preference pairs), ``prompt`` alone. Anything else goes through the column templates
of ``templates.py``. A setting that names the format was the alternative: it is one more thing to be
wrong, and no two of these formats share their columns.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.chat import read_chat
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.fields import kind, shown, take_text
from gptoss_tune.harmony.native import is_native, read_native

_SHAREGPT_ROLES: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "function_call",
}
_PASSED_ON: Final = (
    "tools",
    "response_format",
    "reasoning_effort",
    "builtin_tools",
    "weight",
    "channel_weights",
)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, the first preferred."""

    chosen: Conversation
    rejected: Conversation


def read_row(row: dict[str, Any], source: str) -> Conversation:
    """Return the conversation of a row for supervised fine-tuning, whatever its format.

    Raises:
        DataError: The row cannot be trained on; the message names file, line, reason and fix.
    """
    return read_as(format_of(row, source), row, source)


def read_as(name: str, row: dict[str, Any], source: str) -> Conversation:
    """Return the conversation of a row whose format is known.

    Raises:
        DataError: As ``read_row``.
    """
    if name == "preference":
        raise DataError(
            f"{source}: the row is a preference pair (chosen, rejected); supervised fine-tuning "
            "needs one answer: name the column of it with a template"
        )
    if name == "prompt":
        raise DataError(
            f"{source}: the row is a prompt without an answer; add a 'completion', or 'messages'"
        )
    return _READERS[name](row, source)


def format_of(row: dict[str, Any], source: str) -> str:
    """Return ``native``, ``chat``, ``sharegpt``, ``completion``, ``preference`` or ``prompt``.

    Raises:
        DataError: No column of a known format is there.
    """
    there = {key for key, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= there:
        return "preference"
    if "messages" in there:
        return "native" if is_native(row["messages"]) else "chat"
    if "conversations" in there:
        return "sharegpt"
    if "prompt" in there:
        return "completion" if "completion" in there else "prompt"
    columns = ", ".join(shown(key) for key in list(row)[:8]) or "none"
    raise DataError(
        f"{source}: no known columns (got {columns}); expected messages, conversations, or prompt "
        "with completion: map other columns with a template in the recipe (columns)"
    )


def read_preference(row: dict[str, Any], source: str) -> Preference:
    """Return both conversations of a preference pair; each ends with its own answer.

    Raises:
        DataError: The row is not such a pair.
    """
    if format_of(row, source) != "preference":
        raise DataError(f"{source}: the row has no pair of 'chosen' and 'rejected'; add both")
    both = [_joined(row, row[key], key, source) for key in ("chosen", "rejected")]
    if both[0].messages == both[1].messages:
        raise DataError(f"{source}: chosen and rejected are the same; remove the row")
    return Preference(*both)


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
    if row.get("system") is not None:
        system = take_text(row["system"], source, "system")
        messages = [{"role": "system", "content": system}, *messages]
    reader = read_native if is_native(messages) else read_chat
    return reader({**_passed_on(row), "messages": messages}, source, complete=False)


def _read_completion(row: dict[str, Any], source: str) -> Conversation:
    return _joined(row, row["completion"], "completion", source)


def _joined(row: dict[str, Any], answer: object, key: str, source: str) -> Conversation:
    """Join prompt and answer into one row; only the answer's messages are trained."""
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
    joined = {**_passed_on(row), "messages": [*before, *after]}
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


def _read_sharegpt(row: dict[str, Any], source: str) -> Conversation:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise DataError(f"{source}: conversations is {kind(turns)}; expected a list")
    messages: list[dict[str, Any]] = []
    if row.get("system") is not None:
        messages.append({"role": "system", "content": row["system"]})
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise DataError(f"{source}: {where} is {kind(turn)}; expected an object")
        said = turn.get("from") if turn.get("from") is not None else turn.get("role")
        role = _SHAREGPT_ROLES.get(said) if isinstance(said, str) else None
        if role is None:
            raise DataError(
                f"{source}: {where}.from is {shown(said)}; expected one of "
                f"{', '.join(_SHAREGPT_ROLES)}"
            )
        value = turn.get("value") if turn.get("value") is not None else turn.get("content")
        if role == "function_call":
            messages.append(_sharegpt_call(value, source, where))
        else:
            kept = {key: turn[key] for key in ("weight", "thinking") if turn.get(key) is not None}
            messages.append({"role": role, "content": value, **kept})
    return read_chat({**_passed_on(row), "messages": messages}, source)


def _sharegpt_call(value: object, source: str, where: str) -> dict[str, Any]:
    text = take_text(value, source, f"{where}.value")
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(
            f"{source}: {where}.value of a function_call is not JSON: {shown(text)}; expected "
            '{"name": ..., "arguments": {...}}'
        ) from None
    listed = calls if isinstance(calls, list) else [calls]
    return {"role": "assistant", "tool_calls": [{"function": call} for call in listed]}


def _passed_on(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in _PASSED_ON if row.get(key) is not None}


_READERS: Final = {
    "native": read_native,
    "chat": read_chat,
    "sharegpt": _read_sharegpt,
    "completion": _read_completion,
}
