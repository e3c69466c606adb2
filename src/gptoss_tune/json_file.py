"""JSON that someone else wrote: read strictly, within bounds, or refused with its name.

``json.loads`` alone takes the last of two equal keys, reads NaN and Infinity, guesses UTF-16, dies
of a text nested a hundred thousand deep with an error nobody catches, and waits for ever at a pipe
that was given a file's name. Configurations, indices and records all pass through here instead.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError

LARGEST_FILE = 256 << 20
"""Bytes; the index of gpt-oss-120b has 100 KB, a record of a long run less than a megabyte."""


def read_object(path: Path, *, largest: int = LARGEST_FILE) -> dict[str, Any]:
    """Return the JSON object in the file ``path``.

    Raises:
        FileNotFoundError: There is no such file; the caller knows what that means.
        CheckpointError: It cannot be read, is no regular file, is larger than ``largest`` bytes, or
            is not one JSON object with unique keys and finite numbers in UTF-8.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise CheckpointError(f"{path}: is no regular file; expected JSON, copy it again")
        if about.st_size > largest:
            raise CheckpointError(
                f"{path}: has {about.st_size} bytes, at most {largest} are read; it is not what "
                "its name says"
            )
        raw = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        value = parse(raw)
    except ValueError as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); restore it") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__}; expected a JSON object")
    return value


def parse(raw: bytes) -> Any:
    """Return the one JSON value in ``raw``.

    Raises:
        ValueError: It is not UTF-8, not JSON, says a key twice, holds NaN or infinity, or is nested
            too deeply.
    """
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


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
