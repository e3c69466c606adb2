"""The keys of a row that say how its answer is graded.

``answer`` (a text, or a list of accepted ones) is compared, ``pattern`` searched for; ``grader``
names another way to judge: ``"grader": "number"``, or with settings of its own
``"grader": {"kind": "number", "tolerance": 0.01}``. A suite of tasks names one for all its rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.grading.calls import read_calls
from gptoss_tune.grading.choice import read_choice
from gptoss_tune.grading.grader import Grader
from gptoss_tune.grading.instructions import read_rules
from gptoss_tune.grading.maths import read_maths
from gptoss_tune.grading.number import read_number
from gptoss_tune.grading.policy import KNOWN as POLICY_SETTINGS
from gptoss_tune.grading.policy import read_policy
from gptoss_tune.grading.reading.settings import refuse_unknown
from gptoss_tune.grading.schema import read_schema
from gptoss_tune.grading.text import read_exact, read_pattern
from gptoss_tune.harmony.fields import shown, take_text

Reader = Callable[[dict[str, Any], Mapping[str, Any], str], Grader]
"""Makes a grader of a row, of the settings beside its kind, and of the row's place; it raises
``DataError`` for what cannot be used, a setting that it does not know included."""


def _exact(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> Grader:
    refuse_unknown(settings, (), source, "exact")
    return read_exact(row.get("answer"), source)


def _pattern(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> Grader:
    refuse_unknown(settings, (), source, "pattern")
    return read_pattern(row.get("pattern"), source)


def _policy(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> Grader:
    refuse_unknown(settings, POLICY_SETTINGS, source, "policy")
    return read_policy(row, settings, source)


def _code(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> Grader:
    # The sandbox is for those who grade code: no other row needs what it loads.
    from gptoss_tune.grading.code.read import SETTINGS
    from gptoss_tune.grading.code_grader import read_code

    refuse_unknown(settings, SETTINGS, source, "code")
    return read_code(row, settings, source)


READERS: Final[dict[str, Reader]] = {
    "exact": _exact,
    "pattern": _pattern,
    "number": read_number,
    "maths": read_maths,
    "choice": read_choice,
    "rules": read_rules,
    "calls": read_calls,
    "json_schema": read_schema,
    "policy": _policy,
    "code": _code,
}
"""Every grader by its name in a file."""

NOT_OF_A_ROW: Final[dict[str, tuple[str, ...]]] = {
    "number": ("tolerance", "relative_tolerance", "unit", "decimal_comma", "read"),
    "maths": ("digits",),
    "rules": ("verdict",),
    "calls": ("ordered", "match"),
    "json_schema": ("fenced",),
    "policy": ("labels", "positive", "field"),
    "code": ("tolerance", "in_place"),
}
"""Settings that are read beside the kind alone: as keys of a row they would change nothing."""
_NEAR: Final = 0.6


def read_grader(
    row: dict[str, Any], source: str, usual: str | Mapping[str, Any] | None = None
) -> Grader | None:
    """Return what grades the answer to a row; ``None`` where the row does not say.

    Args:
        row: As its file has it.
        source: Its place, for messages.
        usual: Grader of rows that name none.

    Raises:
        DataError: Two graders are there, or one that cannot be used, or a key that is meant for
            one and would not be read.
    """
    answer, pattern = row.get("answer"), row.get("pattern")
    if answer is not None and pattern is not None:
        raise DataError(f"{source}: the row has 'answer' and 'pattern'; keep one to grade by")
    named = row.get("grader")
    if named is None:
        _refuse_misspelt(row, source)
    named = usual if named is None else named
    if named is not None:
        kind, settings = _kind(named, source)
        _refuse_unread(row, kind, settings, source)
        return READERS[kind](row, settings, source)
    if pattern is not None:
        return read_pattern(pattern, source)
    return None if answer is None else read_exact(answer, source)


def require_grader(row: dict[str, Any], source: str) -> Grader:
    """Return what ``read_grader`` does, of a row whose answer is rewarded.

    Raises:
        DataError: The row does not say how its answer is graded, or as ``read_grader``.
    """
    found = read_grader(row, source)
    if found is None:
        raise DataError(
            f"{source}: the row has neither answer, pattern nor grader, and method.rewards weighs "
            "answer; add one, or weigh other rewards"
        )
    return found


def _kind(named: Any, source: str) -> tuple[str, dict[str, Any]]:
    """Return the kind and the settings of a grader as it is written."""
    settings = dict(named) if isinstance(named, Mapping) else {"kind": named}
    kind = take_text(settings.pop("kind", None), source, "grader.kind")
    if kind not in READERS:
        raise DataError(f"{source}: grader is {shown(kind)}; expected one of {', '.join(READERS)}")
    return kind, settings


def _refuse_misspelt(row: Mapping[str, Any], source: str) -> None:
    """Refuse a key that is nearly ``grader`` and names one; other columns are the user's own."""
    for key, value in row.items():
        kind = value.get("kind") if isinstance(value, Mapping) else value
        if not isinstance(key, str) or not isinstance(kind, str) or kind not in READERS:
            continue
        if difflib.SequenceMatcher(None, key.casefold(), "grader").ratio() >= _NEAR:
            raise DataError(f"{source}: {shown(key)} says {kind}; did you mean 'grader'?")


def _refuse_unread(
    row: Mapping[str, Any], kind: str, settings: Mapping[str, Any], source: str
) -> None:
    for key in NOT_OF_A_ROW.get(kind, ()):
        if row.get(key) is not None and row[key] != settings.get(key):
            raise DataError(
                f"{source}: {shown(key)} is a setting of grader {kind}, which is not read from a "
                f'key of the row; write "grader": {{"kind": "{kind}", "{key}": ...}}, or rename '
                "the key if it means something else"
            )
