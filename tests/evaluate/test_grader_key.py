"""The key ``grader`` of a row, and that of its suite."""

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.grading.text import Exact, Pattern


def test_a_row_names_its_grader_and_a_suite_the_usual_one():
    assert read_grader({"answer": "4"}, "x:1") == Exact(("4",))
    assert read_grader({"answer": "4", "grader": "exact"}, "x:1") == Exact(("4",))
    assert read_grader({"pattern": "4+", "grader": {"kind": "pattern"}}, "x:1") == Pattern("4+")
    assert read_grader({"answer": "4"}, "x:1", "exact") == Exact(("4",))
    assert read_grader({"pattern": "4+", "grader": "pattern"}, "x:1", "exact") == Pattern("4+")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "4", "grader": "vibes"}, "grader is 'vibes'; expected one of exact, pattern"),
        ({"answer": "4", "grader": {"kind": "exact", "case": 1}}, "exact has no setting 'case'"),
        ({"answer": "4", "grader": 7}, "grader.kind"),
    ],
)
def test_a_grader_that_is_none_is_refused_with_its_line(row, message):
    with pytest.raises(DataError, match=f"^x:1: .*{message}"):
        read_grader(row, "x:1")
