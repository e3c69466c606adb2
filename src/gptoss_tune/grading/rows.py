"""The keys of a row that say how its answer is graded.

``answer`` (a text, or a list of accepted ones) is compared, ``pattern`` searched for.
"""

from __future__ import annotations

from typing import Any

from gptoss_tune.errors import DataError
from gptoss_tune.grading.grader import Grader
from gptoss_tune.grading.text import read_exact, read_pattern


def read_grader(row: dict[str, Any], source: str) -> Grader | None:
    """Return what grades the answer to a row; ``None`` where the row does not say.

    Args:
        row: As its file has it.
        source: Its place, for messages.

    Raises:
        DataError: Two graders are there, or one that cannot be used.
    """
    answer, pattern = row.get("answer"), row.get("pattern")
    if answer is not None and pattern is not None:
        raise DataError(f"{source}: the row has 'answer' and 'pattern'; keep one to grade by")
    if pattern is not None:
        return read_pattern(pattern, source)
    return None if answer is None else read_exact(answer, source)
