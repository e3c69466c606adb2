"""Verdicts of a suite: code beside other answers, in order, with what the sandbox denies."""

import pytest

from gptoss_tune.benchmark.verdicts import all_graded, told_of_code
from gptoss_tune.errors import MachineError
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.grader import Grading
from gptoss_tune.grading.rows import read_grader


@pytest.fixture(scope="module")
def adds():
    row = {
        "grader": "code",
        "entry_point": "add",
        "function_cases": [{"args": [2, 3], "expected": 5}],
    }
    try:
        return read_grader(row, "x:1")
    except MachineError as error:
        pytest.skip(str(error))


def test_code_among_other_answers_is_graded_in_its_place(adds):
    four = read_grader({"answer": "4"}, "x:2")
    right = "```python\ndef add(a, b):\n    return a + b\n```"
    wrong = "```python\ndef add(a, b):\n    return a - b\n```"
    asked = [(four, "4"), (adds, wrong), (four, "5"), (adds, right), (adds, right), (four, "4")]
    asked = [(grader, Given(final)) for grader, final in asked]
    grades = all_graded(asked)
    assert [grade["passed"] for grade in grades] == [True, False, False, True, True, True]
    assert grades == [Grading().grade(grader, given) for grader, given in asked]
    assert "-1" in grades[1]["note"]


def test_what_is_denied_to_code_is_told_only_where_code_runs(adds):
    four = read_grader({"answer": "4"}, "x:2")
    assert told_of_code([four, None]) == []
    assert any("network" in line for line in told_of_code([four, adds]))
