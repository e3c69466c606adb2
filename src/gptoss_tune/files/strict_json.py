"""JSON that someone else wrote: read strictly, within bounds, or refused with its name.

``json.loads`` alone takes the last of two equal keys, reads NaN and Infinity, guesses UTF-16, dies
of a text nested a hundred thousand deep with an error nobody catches, and waits for ever at a pipe
that was given a file's name. Configurations, indices and records all pass through here instead.

``json.dumps`` alone writes NaN and Infinity, which no other reader takes. What is written here has
null in their place; a record says beside it which figures they were (``run.record``).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.regular import open_regular

LARGEST_FILE = 256 << 20
"""Bytes; the index of gpt-oss-120b has 100 KB, a record of a long run less than a megabyte."""
_DEEPEST = 100
"""Levels; what Python reads is not always what it can write or print again."""


def read_object(
    path: Path,
    *,
    largest: int = LARGEST_FILE,
    folder: Path | None = None,
    take_constants: bool = False,
) -> dict[str, Any]:
    """Return the JSON object in the file ``path``.

    Args:
        path: The file.
        largest: Bytes that it may have.
        folder: Which it must not leave by a link; ``None``: a link may lead anywhere.
        take_constants: Read ``NaN`` and ``Infinity``, which Python writes unless it is told not to.

    Raises:
        FileNotFoundError: There is no such file; the caller knows what that means.
        CheckpointError: It cannot be read, is no regular file, is larger than ``largest`` bytes, or
            is not one JSON object with unique keys and finite numbers in UTF-8.
    """
    try:
        with open_regular(path, largest=largest, folder=folder) as file:
            raw = file.read(os.fstat(file.fileno()).st_size)  # it may grow meanwhile
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        value = parse(raw, take_constants=take_constants)
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); restore it") from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path}: holds {type(value).__name__}; expected a JSON object, restore it"
        )
    return value


def parse(raw: bytes, *, take_constants: bool = False) -> Any:
    """Return the one JSON value in ``raw``; with ``take_constants`` NaN and Infinity, too.

    Raises:
        ValueError: It is not UTF-8, not JSON, says a key twice, holds NaN, infinity or a number
            too large for a double, or is nested too deeply.
    """
    try:
        value = (_WITH_CONSTANTS if take_constants else DECODER).decode(raw.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise ValueError(f"nested more than {_DEEPEST} levels deep")


def parse_unchecked(raw: bytes | str) -> Any:
    """Return the one JSON value in ``raw`` as Python reads it: NaN, a key twice, any depth.

    For a reader that shows what it can of a damaged file and looks at every value itself.

    Raises:
        ValueError: It is not JSON, or is nested deeper than Python reads.
    """
    try:
        return json.loads(raw)
    except RecursionError as error:
        raise ValueError(str(error)) from None


def to_text(
    value: object, *, indent: int | None = None, sort_keys: bool = False, ascii_only: bool = True
) -> str:
    """Return ``value`` as JSON that any reader takes: null for NaN and infinities."""
    return json.dumps(
        finite(value), indent=indent, sort_keys=sort_keys, ensure_ascii=ascii_only, allow_nan=False
    )


def finite(value: Any, found: dict[str, str] | None = None, name: str = "") -> Any:
    """Return ``value`` with ``None`` for each number that is not finite.

    Args:
        value: What JSON can hold; a tuple counts as a list.
        found: Takes the dotted name of each such number and what it was: ``{"eval_loss": "nan"}``.
        name: Of ``value`` itself.
    """
    if isinstance(value, float) and not math.isfinite(value):
        if found is not None:
            found[name] = str(float(value))
        return None
    if isinstance(value, dict):
        return {
            key: finite(inner, found, f"{name}.{key}" if name else str(key))
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [finite(inner, found, f"{name}[{n}]") for n, inner in enumerate(value)]
    return value


def refuse_other_kinds(path: Path, value: object, kind: Any, name: str = "") -> None:
    """Refuse what a reader of the file would trip over; null for a mapping counts as none.

    Args:
        path: The file, for the message.
        value: What it holds; a null mapping in it becomes an absent one.
        kind: A type; ``[kind]`` for a list; ``{key: kind}`` for a mapping, whose keys may be
            missing and which may have others; ``{}`` and ``[]`` for any mapping or list. A list
            or plain value may be null, too.
        name: Where the value stands in the file.

    Raises:
        CheckpointError: It is of another kind.
    """
    if isinstance(kind, dict) and isinstance(value, dict):
        for key, inner in kind.items():
            if isinstance(inner, dict) and value.get(key) is None:
                value.pop(key, None)
            if key in value:
                refuse_other_kinds(path, value[key], inner, f"{name}.{key}" if name else key)
    elif isinstance(kind, list) and isinstance(value, list):
        for number, entry in enumerate(value):
            for inner in kind:
                refuse_other_kinds(path, entry, inner, f"{name}[{number}]")
    elif not _is_plain(value, kind):
        word = {dict: "a mapping", list: "a list"}.get(type(kind), getattr(kind, "__name__", ""))
        raise CheckpointError(
            f"{path}: {name or 'it'} is {ascii(value)[:60]}, expected {word}; the file is damaged "
            "or not what its name says, restore it"
        )


def _is_plain(value: object, kind: Any) -> bool:
    if isinstance(kind, dict) or isinstance(value, bool):
        return False
    if value is None or isinstance(kind, list):
        return value is None
    return isinstance(value, (kind, int) if kind is float else kind)


def _inside(value: object) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:60]!a} is there twice in one object")
    return unique


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:60]} is too large")
    return value


DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite
)
"""Refuses a key that is there twice, NaN, infinity, and a number too large for a double."""
_WITH_CONSTANTS: Final = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_float=_finite)
