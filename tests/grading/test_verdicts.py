"""Answers judged by hand, one by one, with what is tricky about each: the graders say the same."""

import json
from pathlib import Path

import pytest

from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.grading.grader import Grading
from gptoss_tune.grading.rows import read_grader

LINES = (Path(__file__).parent / "verdicts.jsonl").read_text("utf-8").splitlines()
CASES = [json.loads(line) for line in LINES]


def kind_of(case):
    named = case["row"]["grader"]
    return named["kind"] if isinstance(named, dict) else named


KINDS = ("exact", "pattern", "number", "maths", "choice", "rules", "calls", "json_schema")


def test_every_answer_is_of_a_kind_that_is_judged_here():
    assert {kind_of(case) for case in CASES} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_hand_made_answer_gets_its_verdict(kind):
    cases = [(n, case) for n, case in enumerate(CASES, 1) if kind_of(case) == kind]
    judge, wrong = Grading(), []
    for line, case in cases:
        grader = read_grader(case["row"], f"verdicts.jsonl:{line}")
        calls = tuple(Call(call["name"], call["arguments"]) for call in case.get("calls", []))
        grade = judge.grade(grader, Given(case["final"], calls))
        if grade["passed"] != case["passed"]:
            wrong.append((line, case["why"], grade))
    assert not wrong
    # Both verdicts are there: a grader that always says the same is seen.
    assert {case["passed"] for _, case in cases} == {True, False}
