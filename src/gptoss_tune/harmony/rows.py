"""Files -> rows, each with the place it came from.

A row is what the file says: a JSON object with unique keys and finite numbers, in strict UTF-8.
Every refusal names ``file:line``. The readers of ``datasets`` were the alternative: their errors
name a table and a chunk, a duplicate key takes the last value, and a broken line ends the whole
load.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import kind

Located = tuple[str, dict[str, Any] | DataError]
"""``file:line`` and the row there, or why it cannot be read."""


def read_jsonl(file: IO[bytes], name: str) -> Iterator[Located]:
    """Yield the rows of a JSON Lines file; blank lines are skipped, CRLF and a BOM are fine."""
    for number, raw in enumerate(file, start=1):
        at = f"{name}:{number}"
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        try:
            yield at, parse_object(raw, at)
        except DataError as error:
            yield at, error


def parse_object(raw: bytes, at: str) -> dict[str, Any]:
    """Return the JSON object in ``raw``.

    Raises:
        DataError: It is not UTF-8, not JSON, not an object, or says a key twice.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise DataError(
            f"{at}: byte {error.start + 1} of the line is not UTF-8 (0x{raw[error.start]:02x}); "
            "save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{at}: column {error.colno} is not JSON ({error.msg}); each line must be one whole "
            "JSON object"
        ) from None
    except RecursionError:
        raise DataError(f"{at}: nested too deeply to read; flatten the row") from None
    except ValueError as error:
        raise DataError(f"{at}: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{at}: the row is {kind(value)}; expected an object such as a chat row")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:60]!r} is there twice in one object; keep one")
    return unique


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON; write a number or null")


def local_file(path: str) -> Path:
    """Return the path of a local data file.

    Raises:
        DataError: It is not there, or is a folder.
    """
    file = Path(path)
    if not file.exists():
        raise DataError(
            f"{path}: no such file (looked in {Path.cwd()}); paths are relative to the current "
            "directory"
        )
    return file
