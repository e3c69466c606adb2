"""Plain data between processes that do not trust each other, as JSON that names containers.

``(1, {2.5})`` is ``{"t": [1, {"s": [2.5]}]}``. Never pickle, which runs what it reads. What is no
plain data (an instance of the code's own class, a function, an iterator) stays where it is and is
spoken of by a number: ``{"o": [3, "Stack"]}``.

The reader of a line that untrusted code wrote must not choke on it: lines are bounded, numbers have
their digits counted before they are read, and nesting ends in ``RecursionError``, which readers
take as nonsense.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, Final

LONGEST_LINE: Final = 2 * 2**20
"""Bytes of one message."""
_MOST_DIGITS = 4_000
"""Digits of a decimal whole number; longer ones go as hexadecimal text, which is read at once."""


_SEQUENCES: Final[tuple[tuple[Any, str], ...]] = (
    (list, "l"),
    (tuple, "t"),
    (set, "s"),
    (frozenset, "f"),
)


class NotPlainError(Exception):
    """A value that is no plain data, or a message that is nonsense."""


Keep = Callable[[object], int]
"""Keeps an object and gives its number."""
Find = Callable[[int, str], object]
"""Gives what stands for an object of that number and type's name."""


def encode(value: object, keep: Keep | None = None) -> Any:
    """Return the JSON form of a value.

    Args:
        value: Any object; subclasses of plain types go as these.
        keep: Takes what is no plain data; ``None`` refuses it.

    Raises:
        NotPlainError: It is no plain data, and nothing keeps it.
    """
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        whole = int.__index__(value)
        return whole if whole.bit_length() < 3 * _MOST_DIGITS else {"i": hex(whole)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, complex):
        return {"c": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"b": bytes(value).hex()}
    if isinstance(value, dict):
        return {"d": [[encode(k, keep), encode(v, keep)] for k, v in dict.items(value)]}
    kind: Any
    for kind, tag in _SEQUENCES:
        if isinstance(value, kind):
            items: Any = kind.__iter__(value)
            return {tag: [encode(item, keep) for item in items]}
    if keep is None:
        raise NotPlainError(f"{type(value).__name__} is no plain data")
    return {"o": [keep(value), type(value).__name__]}


def decode(form: Any, find: Find | None = None) -> Any:
    """Return the value of a JSON form; for a process that may be slowed down by a hostile one.

    Raises:
        NotPlainError: It is no such form.
    """
    if form is None or isinstance(form, (bool, int, float, str)):
        return form
    tag, inner = tagged(form)
    try:
        if tag == "i":
            return int(inner, 16)
        if tag == "c":
            return complex(*inner)
        if tag == "b":
            return bytes.fromhex(inner)
        if tag == "o" and find is not None:
            return find(int(inner[0]), str(inner[1]))
        if tag == "d":
            return {decode(key, find): decode(value, find) for key, value in inner}
        kinds = {"l": list, "t": tuple, "s": set, "f": frozenset}
        if tag in kinds:
            return kinds[tag](decode(item, find) for item in inner)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise NotPlainError(f"a message is nonsense ({type(error).__name__})") from None
    raise NotPlainError("a message is nonsense (unknown tag)")


def tagged(form: Any) -> tuple[str, Any]:
    """Return the tag and the inner part of a container's form.

    Raises:
        NotPlainError: It is none.
    """
    if not isinstance(form, dict) or len(form) != 1:
        raise NotPlainError("a message is nonsense (no container)")
    ((tag, inner),) = form.items()
    if tag in "iboctldsf" and isinstance(inner, str if tag in "ib" else list):
        return tag, inner
    raise NotPlainError("a message is nonsense (unknown tag)")


def loads(line: bytes) -> Any:
    """Return the JSON of a message that anyone may have written.

    Raises:
        NotPlainError: It is none, too long, or too deep.
    """
    if len(line) > LONGEST_LINE:
        raise NotPlainError(f"a message has over {LONGEST_LINE:,} bytes")
    try:
        return json.loads(line, parse_int=_whole)
    except (ValueError, RecursionError, MemoryError) as error:
        raise NotPlainError(f"a message is nonsense ({type(error).__name__})") from None


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError("a number with too many digits")
    return int(digits)


def dumps(message: Any) -> bytes:
    """Return a message as one line.

    Raises:
        NotPlainError: It is too long or too deep to be read.
    """
    try:
        line = json.dumps(message).encode() + b"\n"
    except RecursionError:
        raise NotPlainError("a value is nested too deeply to be handed over") from None
    if len(line) > LONGEST_LINE:
        raise NotPlainError(f"a value takes over {LONGEST_LINE:,} bytes to be handed over")
    return line


class Lines:
    """Messages from a descriptor, one a line, each bounded."""

    def __init__(self, descriptor: int) -> None:
        """Read from ``descriptor``."""
        self._descriptor, self._held = descriptor, b""

    def next(self) -> bytes | None:
        """Return the next line; ``None`` at the end.

        Raises:
            NotPlainError: It is too long.
        """
        parts, size = [self._held], len(self._held)
        while b"\n" not in parts[-1]:
            if size > LONGEST_LINE:
                raise NotPlainError(f"a message has over {LONGEST_LINE:,} bytes")
            part = os.read(self._descriptor, 65_536)
            if not part:
                return None
            parts.append(part)
            size += len(part)
        line, _, self._held = b"".join(parts).partition(b"\n")
        return line


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
