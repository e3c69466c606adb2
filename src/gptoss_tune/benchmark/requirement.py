"""``--require``: what a script wants to be told of by an exit code.

``maths>=0.8`` is the score of a suite, ``maths.tokens<=500`` another of its figures,
``health>=0.99`` a figure of every suite. It is asked of each subject but the first, with which the
others are compared (of the only one, where it is alone); ``maths@tuned>=0.8`` asks one of them.
``maths@tuned-base>=-0.02`` is the difference of two scores on the same questions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gptoss_tune.display import one_line
from gptoss_tune.errors import RecipeError, ThresholdMissed

METRICS: Final = ("score", "health", "cut_off", "tokens", "thinking")
_TEXT: Final = re.compile(
    r"\s*(?P<what>[^@<>=]+?)\s*(?:@\s*(?P<who>[^<>=]+?))?\s*(?P<sign><=|>=)\s*(?P<value>\S+)\s*"
)
_PASS_AT: Final = re.compile(r"pass@?([0-9]{1,3})")


@dataclass(frozen=True)
class Requirement:
    """One of them.

    Attributes:
        text: As it was written.
        suites: Of which suites it is asked.
        metric: One of ``METRICS``.
        subjects: Of which subjects, each for itself.
        less: Subject whose score is taken off; ``None`` for a plain figure.
        at_least: Whether the figure must be as large, or as small.
        bound: The number.
    """

    text: str
    suites: tuple[str, ...]
    metric: str
    subjects: tuple[str, ...]
    less: str | None
    at_least: bool
    bound: float


def read_requirements(
    texts: Sequence[str], suites: Sequence[str], subjects: Sequence[str]
) -> list[Requirement]:
    """Return what ``--require`` says.

    Args:
        texts: As written.
        suites: Names that will be measured.
        subjects: Labels that will be asked, the first the one to compare with.

    Raises:
        RecipeError: Lists all that cannot be understood, or ask for what is not measured.
    """
    found, mistakes = [], []
    for text in texts:
        try:
            found.append(_read(text, suites, subjects))
        except RecipeError as error:
            mistakes.append(str(error))
    if mistakes:
        raise RecipeError("\n".join(mistakes))
    return found


def judge(requirements: Sequence[Requirement], figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Return for each requirement, suite and subject what was found, and whether it holds.

    Args:
        requirements: What is wanted.
        figures: From ``figures_of``.
    """
    suites = {suite["name"]: suite for suite in figures["suites"]}
    return [
        _judged(requirement, suite, suites[suite]["subjects"], subject)
        for requirement in requirements
        for suite in requirement.suites
        for subject in requirement.subjects
    ]


def refuse_missed(judged: Sequence[dict[str, Any]]) -> None:
    """Raise where a requirement does not hold.

    Raises:
        ThresholdMissed: With a line for each.
    """
    missed = [one["said"] for one in judged if not one["holds"]]
    if missed:
        raise ThresholdMissed("\n".join(["what --require wants does not hold:", *missed]))


def _judged(wanted: Requirement, suite: str, cells: dict[str, Any], subject: str) -> dict[str, Any]:
    value = _value(cells.get(subject), wanted.metric)
    who = subject
    if wanted.less is not None:
        other = _value(cells.get(wanted.less), wanted.metric)
        value = None if value is None or other is None else value - other
        who = f"{subject} less {wanted.less}"
    holds = value is not None and (
        value >= wanted.bound - 1e-9 if wanted.at_least else value <= wanted.bound + 1e-9
    )
    shown = "not measured" if value is None else f"{value:.4g}"
    return {
        "text": wanted.text,
        "suite": suite,
        "subject": subject,
        "found": value,
        "holds": holds,
        "said": f"{wanted.text}: {suite}, {who}: {wanted.metric} is {shown}",
    }


def _value(cell: dict[str, Any] | None, metric: str) -> float | None:
    if cell is None:
        return None
    if match := _PASS_AT.fullmatch(metric):
        return cell["pass_at"].get(match[1])
    return cell[metric]


def _read(text: str, suites: Sequence[str], subjects: Sequence[str]) -> Requirement:
    shown = f"--require '{one_line(text)}'"
    match = _TEXT.fullmatch(text)
    if match is None:
        raise RecipeError(
            f"{shown}: expected a figure, >= or <=, and a number, such as maths>=0.8, "
            "health>=0.99, maths.tokens<=500 or maths@tuned-base>=-0.02"
        )
    try:
        bound = float(match["value"])
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise RecipeError(f"{shown}: '{match['value']}' is no number")
    asked, metric = _figure(match["what"], suites, shown)
    who, less = _who(match["who"], subjects, shown)
    return Requirement(text.strip(), asked, metric, who, less, match["sign"] == ">=", bound)


def _figure(what: str, suites: Sequence[str], shown: str) -> tuple[tuple[str, ...], str]:
    """Return the suites and the metric that ``what`` names; a suite's name goes first."""
    if what in suites:
        return (what,), "score"
    if _is_metric(what):
        return tuple(suites), what
    suite, _, metric = what.rpartition(".")
    if suite in suites and _is_metric(metric):
        return (suite,), metric
    raise RecipeError(
        f"{shown}: '{what}' is not measured; expected a suite ({', '.join(suites)}), one of "
        f"{', '.join(METRICS)}, pass1 ..., or a suite with one of them, such as {suites[0]}.tokens"
    )


def _is_metric(name: str) -> bool:
    return name in METRICS or _PASS_AT.fullmatch(name) is not None


def _who(
    said: str | None, subjects: Sequence[str], shown: str
) -> tuple[tuple[str, ...], str | None]:
    if said is None:
        return tuple(subjects[1:]) or tuple(subjects), None
    if said in subjects:
        return (said,), None
    for place, letter in enumerate(said):
        ours, other = said[:place].strip(), said[place + 1 :].strip()
        if letter == "-" and ours in subjects and other in subjects:
            return (ours,), other
    raise RecipeError(
        f"{shown}: '{said}' is no subject; expected {', '.join(subjects)}, or a difference of two"
    )
