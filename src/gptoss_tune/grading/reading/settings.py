"""Reading the settings of a grader: the value when it can be used, else an error with its place.

``"grader": {"kind": "number", "tolerance": 0.01}`` has one setting, ``tolerance``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from gptoss_tune.error_hints import missing_extra
from gptoss_tune.errors import DataError, MachineError
from gptoss_tune.harmony.fields import shown, take_text

LONGEST_ANSWER: Final = 200_000
"""Characters of a final text that graders read; gpt-oss's whole context holds about 500,000."""
TOO_LONG: Final = f"not judged: the answer has over {LONGEST_ANSWER:,} characters"


def refuse_unknown(
    settings: Mapping[str, Any], known: tuple[str, ...], source: str, kind: str
) -> None:
    """Refuse settings of a grader that it does not have.

    Raises:
        DataError: There is one.
    """
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        expected = ", ".join(known) or "none"
        raise DataError(
            f"{source}: grader {kind} has no setting {shown(unknown[0])}; expected {expected}"
        )


def take_choice(
    settings: Mapping[str, Any], key: str, allowed: tuple[str, ...], source: str, what: str
) -> str:
    """Return one of the ``allowed`` words; the first where it is not set.

    Raises:
        DataError: It is something else.
    """
    value = settings.get(key, allowed[0])
    if value not in allowed:
        raise DataError(
            f"{source}: {what}.{key} is {shown(value)}; expected one of {', '.join(allowed)}"
        )
    return value


def take_flag(settings: Mapping[str, Any], key: str, source: str, what: str) -> bool:
    """Return a setting that is true or false; false where it is not set.

    Raises:
        DataError: It is something else.
    """
    value = settings.get(key, False)
    if not isinstance(value, bool):
        raise DataError(f"{source}: {what}.{key} is {shown(value)}; expected true or false")
    return value


def take_amount(settings: Mapping[str, Any], key: str, source: str, what: str) -> float:
    """Return a number from 0 on; 0 where it is not set.

    Raises:
        DataError: It is something else.
    """
    value = settings.get(key, 0.0)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf or value > 1e300:
        raise DataError(f"{source}: {what}.{key} is {shown(value)}; expected a number from 0 on")
    return float(value)


def take_count(value: Any, source: str, what: str, *, least: int = 0) -> int:
    """Return a whole number from ``least`` to a million.

    Raises:
        DataError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 10**6:
        raise DataError(
            f"{source}: {what} is {shown(value)}; expected a whole number from {least} to 1,000,000"
        )
    return value


def take_texts(value: Any, source: str, what: str, *, most: int = 1_000) -> tuple[str, ...]:
    """Return a text, or a list of texts, none of them blank.

    Raises:
        DataError: It is something else.
    """
    listed = value if isinstance(value, list) else [value]
    if not listed or len(listed) > most:
        raise DataError(f"{source}: {what} has {len(listed):,} entries; expected 1 to {most:,}")
    texts = tuple(take_text(text, source, what) for text in listed)
    for text in texts:
        if not text.strip():
            raise DataError(
                f"{source}: {what} is {shown(text)}; expected a text that says something"
            )
    return texts


def require(module: str, kind: str, source: str) -> None:
    """Refuse a grader whose library is not installed, before anything is asked.

    Raises:
        MachineError: Names the extra that brings it.
    """
    if (missing := missing_extra(module)) is not None:
        raise MachineError(f"{source}: grader {kind}: {missing}")
