"""The grader ``code``: the code of an answer against tests, in a sandbox (``grading.code``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.code.pool import mapped
from gptoss_tune.grading.code.read import read_task
from gptoss_tune.grading.code.task import CodeTask
from gptoss_tune.grading.grader import Grader, Verdict


@dataclass(frozen=True)
class Code:
    """Passes when the code of the final text passes the tests.

    Its wall clock is the row's own, so ``Grading`` need not hand it a share of its time: a verdict
    ends by itself, though it takes longer than one on a text. ``judge_many`` judges several at a
    time.
    """

    task: CodeTask

    kind: ClassVar[str] = "code"
    seconds: ClassVar[float] = 0.0

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        return self.task.tests.expected

    def judge(self, given: Given, seconds: float) -> Verdict:
        """Run the code of the final text against the tests.

        Raises:
            MachineError: The sandbox could not be set up.
        """
        mistake = self.task.mistake(given.final)
        return Verdict(mistake is None, mistake)


def read_code(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> Code:
    """Return the grader of a row's tests.

    Raises:
        DataError: The row has no tests, tests of several styles, or some that cannot be used.
        MachineError: This machine does not hold back code of a model.
    """
    return Code(read_task(row, settings, source))


def judge_many(
    asked: Sequence[tuple[Grader, Given]], *, parallel: int | None = None
) -> list[Verdict]:
    """Return verdicts in order, so many at a time, each within its grader's own time.

    For graders that wait for a process, such as ``Code``; ``Grading`` is for those that compute in
    this one.

    Args:
        asked: Graders with the answers.
        parallel: Verdicts at a time; ``None``: one for each processor.

    Raises:
        MachineError: A sandbox could not be set up; no verdict is begun after that.
    """
    return mapped(lambda pair: pair[0].judge(pair[1], pair[0].seconds), asked, parallel)
