"""Field types of a recipe: number, text, path and date, each with its checks.

YAML and shells hand over more than was meant: ``1e-5`` arrives as text from some parsers, nobody
expands ``~/runs``, a text can hold control characters. Each type says here once what it takes, so
the sections in ``schema/`` stay a list of names, ranges and defaults. Coercion in
pydantic's lax mode was the alternative: it also turns ``"yes"`` into True and ``1.0`` into 1, and a
recipe that says something else than it does is what this room is there to prevent.
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

# No leading zeros: 017 is 15 to one YAML and 17 to the next, so here it is no number at all.
NUMBER = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
LONGEST_NUMBER = 40
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_SWITCH_WORDS = {"no", "off", "false", "yes", "on", "true"}

T = TypeVar("T")


def refuse(expected: str, todo: str) -> PydanticCustomError:
    """Return the error for one value: what was expected and what to do (the caller raises it)."""
    return PydanticCustomError(
        "recipe_value", "expected {expected}; {todo}", {"expected": expected, "todo": todo}
    )


def is_hub_name(name_or_path: str) -> bool:
    """Return whether a text can be a name on the Hugging Face Hub: ``name`` or ``owner/name``."""
    return _HUB_NAME.fullmatch(name_or_path) is not None


def _number(value: object) -> object:
    """Read number-like text as the number it spells; leave the rest to the strict check."""
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER and NUMBER.fullmatch(value):
        return float(value)
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise refuse("text without control characters", "remove them")
    if value != value.strip():
        raise refuse("text without spaces around it", f"write {value.strip()!r}")
    return value


def _template(value: str) -> str:
    if not "".join(value.split("\n")).isprintable():
        raise refuse("text without control characters but line breaks", "remove them")
    if not value.strip():
        raise refuse("a template that writes something", "write '{{ column }}'")
    return value


def _path(value: str) -> str:
    if "://" in value:
        raise refuse(
            "a path, or a name on the Hub",
            "addresses are not read: download the file and name it, without its credentials",
        )
    if value.startswith("~"):
        raise refuse("a path written out", "'~' is not expanded: write the whole path")
    if "${" in value or value.startswith("$"):
        raise refuse(
            "a path written out",
            "variables are not expanded in a recipe: let the shell do it in an override",
        )
    return value


def _date(value: str) -> str:
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        raise refuse("a day of the calendar, YYYY-MM-DD", "write for example 2025-06-28") from None
    return value


def _resume(value: str) -> str:
    if value.lower() in _SWITCH_WORDS:
        raise refuse("auto, never or the path of a checkpoint", "write auto or never")
    return value


def listed(value: object) -> object:
    """Read one word as the list that it is short for."""
    return [value] if isinstance(value, str) else value


def _unique(values: list[T]) -> list[T]:
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        raise refuse("every entry once", f"remove the second {repeated[0]!r}")
    return values


FromText = BeforeValidator(_number)
"""Last in a number's annotation: number-like text such as ``"1e-5"`` is read as the number."""


class PathMark:
    """Marks a type whose values name a place: what publishes a recipe finds them by it."""


Text = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
Template = Annotated[str, Field(min_length=1), AfterValidator(_template)]
"""Text that may have several lines."""
PathText = Annotated[Text, AfterValidator(_path), PathMark]
Resume = Annotated[PathText, AfterValidator(_resume)]
Date = Annotated[
    str,
    Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", examples=["2025-06-28"]),
    AfterValidator(_date),
]
Unique = AfterValidator(_unique)
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Section(BaseModel):
    """Base of every section: frozen, strict types, unknown keys refused, numbers finite."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        # Built inside the recipe, and not once more for itself: half a second of every command.
        defer_build=True,
    )


def _server(value: str) -> str:
    todo = "write for example http://localhost:8000; its key is a variable of the environment"
    wrong = refuse("the address of a server, http:// or https://", todo)
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:  # brackets, or a port that is no number
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise wrong
    if not value.isascii():
        raise wrong
    if parts.username is not None or parts.query or parts.fragment:
        raise refuse("an address without a name, a password, a query or a fragment", todo)
    return value


ServerUrl = Annotated[Text, AfterValidator(_server)]
"""Address of a server with OpenAI's API, with or without ``/v1``; it holds no secret."""
