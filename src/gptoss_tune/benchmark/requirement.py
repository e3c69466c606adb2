"""``--require``: what a script wants to be told of by an exit code.

``maths>=0.8`` is the score of a suite, ``maths.tokens<=500`` another of its figures,
``health>=0.99`` a figure of every suite. It is asked of each subject but the first, with which the
others are compared (of the only one, where it is alone); ``maths@tuned>=0.8`` asks one of them.
``maths@tuned-base>=-0.02`` is the difference of two scores on the same questions.

What can never be known, or holds whatever is answered, is refused before anything is asked: the
fourth of one answer, or ``cut_off<=5`` of who means 5 %, as the table has it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gptoss_tune.display import one_line
from gptoss_tune.errors import RecipeError, ThresholdMissed

_COUNTS: Final = ("tokens", "thinking")
METRICS: Final = ("score", "health", "cut_off", *_COUNTS)
_TEXT: Final = re.compile(
    r"\s*(?P<what>(?=[^@<>=])[^@<>=]*?(?:(?<![^.\s])pass@[0-9]+)?)\s*"
    r"(?:@\s*(?P<who>[^<>=]+?))?\s*(?P<sign><=|>=)\s*(?P<value>\S+)\s*"
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
    texts: Sequence[str], suites: Mapping[str, Sequence[int]], subjects: Sequence[str]
) -> list[Requirement]:
    """Return what ``--require`` says.

    Args:
        texts: As written.
        suites: Names that will be measured, and each k of their pass@k.
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
        return cell["pass_at"].get(str(int(match[1])))
    return cell[metric]


def _read(text: str, suites: Mapping[str, Sequence[int]], subjects: Sequence[str]) -> Requirement:
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
    _refuse_impossible(bound, metric, less is not None, shown)
    return Requirement(text.strip(), asked, metric, who, less, match["sign"] == ">=", bound)


def _refuse_impossible(bound: float, metric: str, difference: bool, shown: str) -> None:
    """Refuse a bound on a share that no share reaches, most often a percentage."""
    lowest = -1 if difference else 0
    if metric in _COUNTS or lowest <= bound <= 1:
        return
    what = f"a difference of two shares, from {lowest} to 1" if difference else "a share, 0 to 1"
    percent = f"; {bound:g} % is {bound / 100:g}" if lowest * 100 <= bound <= 100 else ""
    raise RecipeError(f"{shown}: {metric} is {what}{percent}")


def _figure(
    what: str, suites: Mapping[str, Sequence[int]], shown: str
) -> tuple[tuple[str, ...], str]:
    """Return the suites and the metric that ``what`` names; a suite's name goes first."""
    if what in suites:
        return (what,), "score"
    suite, _, metric = what.rpartition(".")
    asked = (suite,) if suite in suites else tuple(suites)
    metric = metric if suite in suites else what
    if metric in METRICS:
        return asked, metric
    if match := _PASS_AT.fullmatch(metric):
        for name in asked:
            _refuse_unknown_pass(int(match[1]), name, suites[name], shown)
        return asked, metric
    raise RecipeError(
        f"{shown}: '{what}' is not measured; expected a suite ({', '.join(suites)}), one of "
        f"{', '.join(METRICS)}, pass1 ..., or a suite with one of them, such as "
        f"{next(iter(suites))}.tokens"
    )


def _refuse_unknown_pass(k: int, suite: str, passes: Sequence[int], shown: str) -> None:
    if k in passes:
        return
    told = f"k is {', '.join(map(str, passes))}" if passes else "a question has one answer"
    todo = f"give --samples {k} and a --temperature above 0" if k > 1 else f"write {suite} alone"
    raise RecipeError(f"{shown}: {suite} tells no pass@{k}, as {told}; {todo}")


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
