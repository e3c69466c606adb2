"""ShareGPT's ``conversations`` -> the same conversations as chat rows."""

from __future__ import annotations

import json
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.fields import kind, shown, take_text
from gptoss_tune.harmony.formats.openai_chat import read_chat
from gptoss_tune.harmony.formats.prompt import passed_on

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


def read_sharegpt(row: dict[str, Any], source: str) -> Conversation:
    """Return the conversation of a row with ``conversations``.

    Raises:
        DataError: A turn is from nobody known, or is not what its role says.
    """
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
    return read_chat({**passed_on(row), "messages": messages}, source)


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
