"""Every grader has an example in docs/evaluation.md, and each answer shown there its verdict."""

import json
import re

import pytest

from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.grading.grader import Grading
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.grading.rules.counted import COUNTED
from gptoss_tune.grading.rules.stated import STATED
from gptoss_tune.shipped import shipped

GUIDE = shipped("data").parent / "docs" / "evaluation.md"
TEXT = GUIDE.read_text(encoding="utf-8") if GUIDE.is_file() else ""
SECTION = re.search(r"^## Graders\n(.*?)^## ", TEXT, re.DOTALL | re.MULTILINE)
PARTS = re.split(r"^### (\w+)\n", SECTION[1] if SECTION else "", flags=re.MULTILINE)[1:]
EXAMPLES = dict(zip(PARTS[::2], PARTS[1::2], strict=True))
TABLE = re.findall(r"^\| `(\w+)` \|", SECTION[1] if SECTION else "", re.MULTILINE)


def given(kind, text):
    call = re.fullmatch(r"(\w+)\((\{.*\})\)", text) if kind == "calls" else None
    return Given(None, (Call(call[1], call[2]),)) if call else Given(text)


def test_the_table_names_what_has_an_example():
    assert list(EXAMPLES) == TABLE and len(TABLE) == 8


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_answer_of_the_guide_gets_the_verdict_that_it_says(kind):
    (row,) = re.findall(r"```json\n(.*?)```", EXAMPLES[kind], re.DOTALL)
    grader, judge, count = read_grader(json.loads(row), kind), Grading(), 0
    for word, answers in re.findall(r"^- (right|wrong): (.*)$", EXAMPLES[kind], re.MULTILINE):
        for answer in re.findall(r"`([^`]+)`", answers):
            grade = judge.grade(grader, given(kind, answer))
            assert grade["passed"] == (word == "right"), (answer, grade)
            count += 1
    assert grader.kind == kind and count >= 2


def test_every_rule_is_in_the_guide():
    named = set(re.findall(r"`(\w+)`", EXAMPLES["rules"]))
    assert {*COUNTED, *STATED} <= named
