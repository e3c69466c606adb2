"""Verdicts on all answers of a suite: code is run for several at a time, all else here in order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.grader import Grader, Grading, as_grade

_CODE = "code"


def all_graded(asked: Sequence[tuple[Grader, Given]]) -> list[dict[str, Any]]:
    """Return the grade of each answer, in order.

    A verdict on code waits for processes of its own, one for each processor at a time.

    Raises:
        MachineError: The sandbox could not be set up.
    """
    waiting = [number for number, (grader, _) in enumerate(asked) if grader.kind == _CODE]
    found: dict[int, dict[str, Any]] = {}
    if waiting:
        from gptoss_tune.grading.code_grader import judge_many

        verdicts = judge_many([asked[number] for number in waiting])
        for number, verdict in zip(waiting, verdicts, strict=True):
            found[number] = as_grade(asked[number][0], verdict)
    grading = Grading()
    for number, (grader, given) in enumerate(asked):
        if number not in found:
            found[number] = grading.grade(grader, given)
    return [found[number] for number in range(len(asked))]


def told_of_code(graders: Iterable[Grader | None]) -> list[str]:
    """Return what the sandbox denies on this machine, a line each; nothing where no code runs."""
    if not any(grader is not None and grader.kind == _CODE for grader in graders):
        return []
    from gptoss_tune.grading.code.protection import protection

    return list(protection().lines())
