"""Whether a result that untrusted code gave is the expected one, by walking the expected one.

The result stays in the form of ``inside.wire`` and is never turned into Python's own sets and
dictionaries: a hundred thousand keys that all have one hash would take this process hours. What is
looked at is as large as what is expected, and no comparison is the code's own: there is no object
of it here whose ``__eq__`` could say yes.
"""

from __future__ import annotations

import cmath
import json
from typing import Any, Final

from gptoss_tune.grading.code.inside.wire import NotPlainError, decode, tagged

_LONGEST_SHOWN: Final = 120
_LARGEST_DECODED: Final = 2_000
"""Characters of a form that is turned into a value for a note."""
_LARGEST_KEY: Final = 20_000
"""Characters of a key or an element: a set of numbers in it has some thousands at most."""


def same(form: Any, expected: Any, *, tolerance: float, sequences: bool) -> bool:
    """Return whether a result equals the expected one.

    Numbers are equal as in Python (``True`` is 1), within ``tolerance``, relative and absolute,
    once one of the two is a float; NaN equals NaN.

    Args:
        form: The result, in the form of ``inside.wire``.
        expected: Plain data.
        tolerance: For floats.
        sequences: Whether a tuple counts as a list, since JSON has no word for it.
    """
    try:
        return _same(form, expected, tolerance, sequences)
    except (NotPlainError, RecursionError, OverflowError, TypeError):
        return False


def shown(form: Any) -> str:
    """Return a result for a note, cut to one short line."""
    text = json.dumps(form)
    if len(text) > _LARGEST_DECODED:
        return f"a value of {len(text):,} characters"
    try:
        value = repr(decode(form, lambda _number, kind: _Object(kind)))
    except (NotPlainError, RecursionError, TypeError, ValueError):
        return "no plain data"
    return value if len(value) <= _LONGEST_SHOWN else value[: _LONGEST_SHOWN - 3] + "..."


class _Object:
    """Shown for what is no plain data."""

    def __init__(self, kind: str) -> None:
        self._kind = kind[:40]

    def __repr__(self) -> str:
        return f"<{self._kind}>"


def _same(form: Any, expected: Any, tolerance: float, sequences: bool) -> bool:
    if expected is None or isinstance(expected, str):
        return type(form) is type(expected) and form == expected
    if isinstance(expected, (int, float, complex)):
        return _same_number(form, expected, tolerance)
    tag, inner = tagged(form)
    if isinstance(expected, (bytes, bytearray)):
        return tag == "b" and inner == bytes(expected).hex()
    if isinstance(expected, (list, tuple)):
        tags = "lt" if sequences else "l" if isinstance(expected, list) else "t"
        return (
            tag in tags
            and len(inner) == len(expected)
            and all(
                _same(item, wanted, tolerance, sequences)
                for item, wanted in zip(inner, expected, strict=True)
            )
        )
    if isinstance(expected, (set, frozenset)):
        return tag in "sf" and len(inner) == len(expected) == len(_among(inner, expected))
    if tag != "d" or len(inner) != len(expected):
        return False
    keys = _among([key for key, _ in inner], expected)
    return len(keys) == len(expected) and all(
        _same(value, expected[key], tolerance, sequences)
        for key, (_, value) in zip(keys, inner, strict=True)
    )


def _among(forms: list[Any], expected: Any) -> dict[Any, None]:
    """Return the values of forms that are among the expected, in order; the others are left out."""
    found: dict[Any, None] = {}
    for form in forms:
        if len(json.dumps(form)) <= _LARGEST_KEY:
            value = decode(form)
            if value in expected:
                found[value] = None
    return found


def _same_number(form: Any, expected: complex, tolerance: float) -> bool:
    number = form
    if isinstance(form, dict):
        tag, _ = tagged(form)
        number = decode(form) if tag in "ic" else None
    if not isinstance(number, (int, float, complex)):
        return False
    if number == expected or (number != number and expected != expected):
        return True
    if isinstance(number, int) and isinstance(expected, int):
        return False
    return cmath.isclose(number, expected, rel_tol=tolerance, abs_tol=tolerance)
