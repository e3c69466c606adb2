"""JSON and JSON Lines -> rows, told apart by what the file holds and not by its name.

``Dataset.to_json("x.json")`` writes lines, an editor's "save as JSON Lines" one array, and ``jq``
rows over several lines: each of these is read for what it is, under ``.json`` as under ``.jsonl``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import IO, Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.files.strict_json import DECODER
from gptoss_tune.harmony.fields import kind
from gptoss_tune.harmony.sources.bounded_file import LARGEST_DOCUMENT, lines
from gptoss_tune.harmony.sources.rows import Located, parse_json

_BOM: Final = b"\xef\xbb\xbf"
_LOOKED_AT: Final = 1 << 20
JSON_CELLS: Final = (
    "messages",
    "conversations",
    "tools",
    "response_format",
    "channel_weights",
    "builtin_tools",
)
"""Columns whose value is a list or an object by itself: what holds one is a row, not a wrapper."""


def read_jsonl(file: IO[bytes], name: str) -> Iterator[Located]:
    """Yield the rows of a file that should have one a line.

    Raises:
        DataError: It cannot be read as a whole.
    """
    head = _peek(file).removeprefix(_BOM).lstrip()
    if head.startswith(b"[") and not _is_line_of_many(head):
        yield from _document(_whole(file, name), name)
    elif head.startswith(b"{") and _is_pretty(head):
        yield from _one_after_another(_whole(file, name), name)
    else:
        yield from _lines(file, name)


def read_json(file: IO[bytes], name: str) -> Iterator[Located]:
    """Yield the rows of a file that should be one document; lines are read as such.

    Raises:
        DataError: It cannot be read as a whole.
    """
    head = _peek(file).removeprefix(_BOM).lstrip()
    if head.startswith(b"{") and _is_line_of_many(head):
        yield from _lines(file, name)
        return
    raw = _whole(file, name)
    try:
        yield from _document(raw, name)
    except DataError:
        # Rows over several lines each, or lines longer than what was looked at.
        if not _starts_with_an_object(raw):
            raise
        if _is_pretty(raw):
            yield from _one_after_another(raw, name)
        else:
            yield from _lines(io.BytesIO(raw), name)


def _peek(file: IO[bytes]) -> bytes:
    if isinstance(file, io.BufferedReader):
        return file.peek(_LOOKED_AT)[:_LOOKED_AT]
    return b""


def _whole(file: IO[bytes], name: str) -> bytes:
    raw = file.read(LARGEST_DOCUMENT + 1)
    if len(raw) > LARGEST_DOCUMENT:
        raise DataError(
            f"{name}: is one JSON document of over {LARGEST_DOCUMENT:,} bytes, which would have to "
            "be in memory whole; write one row a line"
        )
    return raw.removeprefix(_BOM)


def _is_line_of_many(head: bytes) -> bool:
    """Whether the first line is a value by itself and another one follows it."""
    first, _, rest = head.partition(b"\n")
    if not rest.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _is_pretty(head: bytes) -> bool:
    """Whether the first object goes over several lines: its first line is none by itself."""
    end = _end_of_first(head)
    return end is not None and b"\n" in head[:end]


def _starts_with_an_object(raw: bytes) -> bool:
    end = _end_of_first(raw)
    return raw.lstrip().startswith(b"{") and end is not None and bool(raw[end:].strip())


def _end_of_first(head: bytes) -> int | None:
    text = head.decode("utf-8", "ignore")
    start = len(text) - len(text.lstrip())
    try:
        end = json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None
    return len(text[:end].encode())


def _lines(file: IO[bytes], name: str) -> Iterator[Located]:
    for number, raw in enumerate(lines(file, name), start=1):
        line = raw.removeprefix(_BOM) if number == 1 else raw
        if not line.isspace() and line:
            yield f"{name}:{number}", line


def _document(raw: bytes, name: str) -> Iterator[Located]:
    """One document: a list of rows, an object that wraps one, or a single row."""
    value = parse_json(raw, f"{name}:1")
    rows = [value]
    if isinstance(value, list):
        rows = value
    elif isinstance(value, dict) and len(value) == 1:
        key, inner = next(iter(value.items()))
        if isinstance(inner, list) and key not in JSON_CELLS:
            rows = inner
    wrapped = rows[:1] != [value]
    starts = _lines_of_elements(raw.decode("utf-8")) if wrapped else iter([1])
    for index, row in enumerate(rows):
        yield _row(row, f"{name}:{next(starts, 1)} (row {index + 1})")


def _one_after_another(raw: bytes, name: str) -> Iterator[Located]:
    """Objects over several lines each, one after the other, perhaps with commas between them."""
    text = raw.decode("utf-8", "surrogateescape")
    position, line, counted, number = 0, 1, 0, 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        if position == len(text):
            return
        line += text.count("\n", counted, position)
        counted, number = position, number + 1
        at = f"{name}:{line} (row {number})"
        try:
            row, position = DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
            # What is wrong with it is said by the parser of rows; where the next begins is unknown.
            rest = text[position:].encode("utf-8", "surrogateescape")
            parse_json(rest, at)
            raise DataError(f"{at}: is not JSON; write one object a line") from None
        yield _row(row, at)


def _row(row: Any, at: str) -> Located:
    if isinstance(row, dict):
        return at, row
    return at, DataError(f"{at}: the row is {kind(row)}; expected an object")


def _lines_of_elements(text: str) -> Iterator[int]:
    """Yield the line on which each element of a valid ``[...]`` or ``{"key": [...]}`` starts."""
    reader = json.JSONDecoder()
    wrapped = text.lstrip().startswith("{")
    after_key = reader.raw_decode(text, text.index('"'))[1] if wrapped else 0
    position = text.index("[", after_key) + 1
    line, counted = 1, 0
    while True:
        while text[position] in " \t\r\n,":
            position += 1
        if text[position] == "]":
            return
        line += text.count("\n", counted, position)
        counted = position
        yield line
        position = reader.raw_decode(text, position)[1]
