"""Reading one field of a row: the value when it can be used, else a DataError that says why.

Nothing is converted on the way: a number is not text, true is not 1. A field that a reader would
have turned into something else (null into "None", half a surrogate pair into U+FFFD) is what a
model would otherwise learn.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Literal

from gptoss_tune.errors import DataError
from gptoss_tune.files import strict_json

Effort = Literal["low", "medium", "high"]

EFFORTS: Final = ("low", "medium", "high")
MOST_NESTED: Final = 64
"""Deepest JSON taken in tools and schemas; openai-harmony stops at 128."""

_TEXT_PARTS: Final = ("text", "input_text", "output_text")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def take_text(value: object, at: str, what: str) -> str:
    """Return ``value`` when it is text that has a UTF-8 form.

    Raises:
        DataError: It is something else, or holds half a surrogate pair.
    """
    if not isinstance(value, str):
        raise DataError(f"{at}: {what} is {kind(value)}; expected text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{at}: {what} holds half a surrogate pair at character {error.start} "
                f"(\\u{ord(value[error.start]):04x}); write the whole character"
            ) from None
    return value


def join_parts(content: object, at: str, where: str) -> str:
    """Return text content, joining ``[{"type": "text", "text": ...}]`` parts.

    Raises:
        DataError: Null, an object, or a part that is not text (gpt-oss reads text only).
    """
    if isinstance(content, dict):
        raise DataError(f"{at}: {where} is an object; expected text: write the object as JSON text")
    if not isinstance(content, list):
        return take_text(content, at, where)
    texts: list[str] = []
    for index, part in enumerate(content):
        here = f"{where}[{index}]"
        type_ = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or type_ not in _TEXT_PARTS:
            raise DataError(f"{at}: {here} {_no_text_part(part, type_)}")
        texts.append(take_text(part.get("text"), at, f"{here}.text"))
    if not texts:
        raise DataError(f"{at}: {where} is an empty list; expected at least one text part")
    return "".join(texts)


def _no_text_part(part: object, type_: object) -> str:
    """Say why a part is not one of text, with a way that works."""
    if isinstance(part, str):
        return (
            "is text that stands in no part; write the whole content as text, or each text as "
            '{"type": "text", "text": ...}'
        )
    if isinstance(part, dict) and type_ is None:
        return "is an object without a type; write the whole content as one text, such as its JSON"
    got = f"a part of type {shown(type_)}" if isinstance(part, dict) else kind(part)
    return f"is {got}; gpt-oss reads text only: write the content as text, or remove the row"


def parse_json(text: str, at: str, what: str) -> Any:
    """Return the JSON value that ``text`` spells: unique keys, finite numbers.

    Raises:
        DataError: It is not JSON, or only Python would read it as such.
    """
    try:
        return strict_json.parse(text.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        if isinstance(error, UnicodeDecodeError):
            reason = "half a surrogate pair"
        raise DataError(f"{at}: {what} is not JSON ({reason}): {shown(text)}") from None


def take_listed(value: object, at: str, what: str) -> object:
    """Return a list that a table had to hold as JSON text; null, ``""`` and ``"null"`` are None.

    Raises:
        DataError: The text is not JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return parse_json(value, at, what)
    except DataError as error:
        raise DataError(
            f"{str(error).replace('is not JSON', 'is text that is not JSON', 1)}; expected JSON"
        ) from None


def take_name(value: object, at: str, what: str) -> str:
    """Return ``value`` when it may stand in a header: letters, digits, ``_``, ``-``, at most 64.

    Raises:
        DataError: It is not such a name.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise DataError(
            f"{at}: {what} is {shown(value)}; expected 1 to 64 of the characters A-Z a-z 0-9 _ -"
        )
    return value


def take_weight(value: object, at: str, what: str) -> float:
    """Return ``value`` as a loss weight between 0 and 100.

    Raises:
        DataError: It is not such a number.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 100:
        return float(value)
    raise DataError(f"{at}: {what} is {shown(value)}; expected a number from 0 to 100")


def take_effort(value: object, at: str) -> Effort:
    """Return ``value`` as a reasoning effort, whatever its case.

    Raises:
        DataError: It is none of low, medium, high.
    """
    if isinstance(value, str) and value.lower() in EFFORTS:
        return value.lower()  # pyright: ignore[reportReturnType]
    raise DataError(f"{at}: reasoning_effort is {shown(value)}; expected low, medium or high")


def nested(value: object) -> int:
    """Return how deeply lists and objects are nested, without recursion; stops past the limit."""
    level, depth = [value], 0
    while level and depth <= MOST_NESTED:
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        depth += any(isinstance(item, (dict, list)) for item in level)
        level = inner
    return depth


def kind(value: object) -> str:
    """Return what a JSON value is, in the words of JSON."""
    names = {bool: "true/false", int: "a number", float: "a number", str: "text"}
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    return names.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """Return a value as a message shows it: short, and with everything unprintable spelled out."""
    if isinstance(value, str):
        text = ascii(value) if not value.isprintable() else repr(value)
    elif isinstance(value, (int, float)) or value is None:
        text = (
            json.dumps(value) if not isinstance(value, int) or abs(value) < 10**18 else "a number"
        )
    else:
        return kind(value)
    return text if len(text) <= 60 else text[:56] + "...'"
