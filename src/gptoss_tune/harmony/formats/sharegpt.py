"""The spellings of a message: ShareGPT's, OpenAI's, and the recipe's own names of roles.

``{"from": "gpt", "value": ...}`` and ``{"role": "assistant", "content": ...}`` are one message;
both keys of a pair may stand in any list of messages, whatever the list is called. A call in
ShareGPT is a message of ``function_call`` whose text is JSON.
"""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import kind, parse_json, shown, take_listed, take_text
from gptoss_tune.harmony.reading import ReadSettings

ROLES: Final = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "function_call",
    "tool_call": "function_call",
}


def is_of_assistant(role: object) -> bool:
    """Whether a message of this role is the assistant's, in any spelling."""
    return isinstance(role, str) and ROLES.get(role) in ("assistant", "function_call")


def list_of_messages(row: dict[str, Any], at: str) -> tuple[str, list[Any]]:
    """Return the column that holds a row's messages and the list; a table holds it as JSON text.

    Raises:
        DataError: It is no list, or an empty one.
    """
    column = "messages" if row.get("messages") is not None else "conversations"
    value = row.get(column)
    messages = take_listed(value, at, column)
    if not isinstance(messages, list):
        raise DataError(f"{at}: {column} is {shown(value)}; expected a list of messages")
    if not messages:
        raise DataError(
            f"{at}: {column} is an empty list; a row needs at least one question and its answer: "
            "add them, or remove the row"
        )
    return column, messages


def as_chat_message(
    message: object, reading: ReadSettings, at: str, where: str
) -> tuple[str, dict[str, Any]]:
    """Return the role of a message, and the message in OpenAI's spelling.

    Raises:
        DataError: It is from nobody known, or says role or content twice and differently.
    """
    if not isinstance(message, dict):
        raise DataError(f"{at}: {where} is {kind(message)}; expected an object")
    said_as, said = _one_of(message, ("role", "from"), at, where)
    said = reading.role(said)
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise DataError(
            f"{at}: {where}.{said_as} is {shown(said)}; expected one of {', '.join(ROLES)}: map "
            "other names in the recipe (data.roles)"
        )
    if "value" in message:
        named, content = _one_of(message, ("content", "value"), at, where)
        message = {**message, "content": content}
    else:
        named = "content"
    if role == "function_call":
        return "assistant", _as_call(message, at, f"{where}.{named}")
    return role, message


def _one_of(
    message: dict[str, Any], keys: tuple[str, str], at: str, where: str
) -> tuple[str, object]:
    first, second = message.get(keys[0]), message.get(keys[1])
    if first is not None and second is not None and first != second:
        raise DataError(f"{at}: {where} has {keys[0]} and {keys[1]}, which differ; keep one")
    found = keys[0] if first is not None or keys[1] not in message else keys[1]
    return found, message.get(found)


def _as_call(message: dict[str, Any], at: str, where: str) -> dict[str, Any]:
    """Return a message of ``function_call`` with its calls as OpenAI writes them."""
    text = take_text(message.get("content"), at, where)
    try:
        calls = parse_json(text, at, where)
    except DataError as error:
        raise DataError(
            f'{error}; a function_call is {{"name": ..., "arguments": {{...}}}}'
        ) from None
    listed = calls if isinstance(calls, list) else [calls]
    rest = {key: value for key, value in message.items() if key not in ("content", "value")}
    return {**rest, "tool_calls": [{"function": call} for call in listed]}
