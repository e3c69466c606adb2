"""A task whose answer is code: takes the code out of an answer, tests it, says what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gptoss_tune.grading.code.cases import Asserts, Calls, Programs
from gptoss_tune.grading.code.extract import assembled, code_of, defines
from gptoss_tune.grading.code.sandbox import Limits

LONGEST_CODE: Final = 200_000
"""Characters of an answer's code."""


@dataclass(frozen=True)
class CodeTask:
    """What code is to pass.

    Attributes:
        tests: What it must pass.
        entry_point: The function or class that it is to define.
        prefix: Python that comes before it.
        limits: What a run may take; the wall clock is for all cases together.
    """

    tests: Programs | Calls | Asserts
    entry_point: str | None
    prefix: str
    limits: Limits

    def mistake(self, text: str | None) -> str | None:
        """Return what is wrong with the code in a text; ``None`` where it passes.

        Args:
            text: Of the final channel; ``None`` without one.

        Raises:
            MachineError: The sandbox could not be set up.
        """
        found = None if text is None else code_of(text, self.entry_point)
        if found is None:
            return "no code in the answer"
        if len(found.code) > LONGEST_CODE:
            return f"the code has over {LONGEST_CODE:,} characters"
        if not found.fenced and not _looks_like_code(found.code, self.entry_point):
            return f"no code in the answer: nothing in it defines {self.entry_point}"
        source = assembled(found.code, self.prefix, self.entry_point)
        wrong = self.tests.mistake(source, self.limits)
        if wrong is not None and not found.fenced and wrong.startswith("SyntaxError"):
            return f"no code in the answer: no block, and the text is no Python ({wrong})"
        return wrong


def _looks_like_code(text: str, entry_point: str | None) -> bool:
    """Return whether a text without blocks may be what is asked for: a definition, or a body."""
    return entry_point is None or text[:1] in (" ", "\t") or defines(text, entry_point)
