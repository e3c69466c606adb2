"""A suite: questions with their graders, and how they are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gptoss_tune.benchmark.subjects.subject import Asking
from gptoss_tune.evaluate.prompts import Question

_TOLD: Final = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Suite:
    """Tasks that make one line of the table.

    Attributes:
        name: In the table, and in a requirement such as ``maths>=0.8``.
        description: What it measures, in one line.
        questions: Each row once at each effort; every one has a grader.
        asking: How answers are drawn.
        samples: Answers to each question; above 1 they are drawn by different seeds, for pass@k.
        licence: Of its questions, where that is known.
        notes: What was left out of its data, or is otherwise worth telling, a line each.
    """

    name: str
    description: str
    questions: tuple[Question, ...]
    asking: Asking
    samples: int = 1
    licence: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def passes(self) -> tuple[int, ...]:
        """Return each k of which pass@k is told; none where a question has one answer."""
        if self.samples == 1:
            return ()
        return (*(k for k in _TOLD if k < self.samples), self.samples)
