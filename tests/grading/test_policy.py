"""Grader policy: only what a caller would parse is a label; everything else is an abstention."""

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.rows import read_grader

WORDS = {"kind": "policy", "labels": ["SAFE", "VIOLATION"], "positive": "VIOLATION"}
LEVELS = {"kind": "policy", "labels": ["SP0", "SP2", "SP3"], "positive": ["SP2", "SP3"]}
NESTED = {"kind": "policy", "field": "result.flag"}
SWITCH = {"kind": "policy", "labels": [False, True], "positive": True, "field": "flagged"}
RATIONALE = (
    '{\n  "violation": 1,\n  "policy_category": "H2.f",\n  "rule_ids": ["H2.d", "H2.f"],\n'
    '  "confidence": "high",\n  "rationale": "It says \\"0\\", and more."\n}'
)


def judge(grader, final, answer, **given):
    made = read_grader({"answer": answer, "policy": "p", "grader": grader}, "rows.jsonl:1")
    return made, made.judge(Given(final, **given), 0)


@pytest.mark.parametrize(
    ("grader", "final", "label"),
    [
        ("policy", "1", "1"),
        ("policy", " 0\n", "0"),
        ("policy", "１", "1"),  # a fullwidth digit is the same one in another width
        ("policy", '{"violation": 1, "policy_category": "H2.f"}', "1"),
        ("policy", '{"violation": 0, "policy_category": null}', "0"),
        ("policy", '{"violation": "1"}', "1"),
        ("policy", RATIONALE, "1"),
        (WORDS, "VIOLATION", "VIOLATION"),
        (WORDS, "safe", "SAFE"),
        (WORDS, '{"violation": "Safe"}', "SAFE"),
        (LEVELS, "SP2", "SP2"),
        (NESTED, '{"result": {"flag": 1}}', "1"),
        (SWITCH, '{"flagged": true}', "true"),
        (SWITCH, '{"flagged": false}', "false"),
    ],
)
def test_the_usual_shapes_are_read(grader, final, label):
    made, verdict = judge(grader, final, label)
    assert verdict.passed and verdict.label == label and verdict.note is None
    assert made.expected == label
    other = next(one for one in made.form.labels if one != label)
    _, verdict = judge(grader, final, other)
    assert not verdict.passed and verdict.label == label


@pytest.mark.parametrize(
    ("grader", "final", "said"),
    [
        ("policy", None, "no final message"),
        ("policy", "", "the answer is ''"),
        ("policy", "1.", "the answer is '1.'"),
        ("policy", "**1**", r"the answer is '\*\*1\*\*'"),
        ("policy", "01", "the answer is '01'"),
        ("policy", "¹", "the answer is '¹'"),
        ("policy", "①", "the answer is '①'"),
        ("policy", '{"violation": "①"}', "violation is '①'"),
        ("policy", "1 0", "the answer is '1 0'"),
        ("policy", "Answer: 1", "the answer is 'Answer: 1'"),
        ("policy", "VIOLATION", "expected one of 0, 1"),
        ("policy", "true", "expected one of 0, 1"),
        ("policy", '```json\n{"violation": 1}\n```', "code fence"),
        ("policy", 'Here: {"violation": 1}', "expected one of 0, 1"),
        ("policy", '{"violation": 1} as said', "begins as JSON and is none"),
        ("policy", '{"violation": 1, "violation": 0}', "twice"),
        ("policy", '{"violation": true}', "violation is true"),
        ("policy", '{"violation": 1.0}', "violation is 1.0"),
        ("policy", '{"violation": 2}', "violation is 2"),
        ("policy", '{"violation": null}', "violation is null"),
        ("policy", '{"violation": [1]}', "violation is a list"),
        ("policy", '{"violation": NaN}', "begins as JSON and is none"),
        ("policy", '{"Violation": 1}', "no field 'violation'"),
        ("policy", '[{"violation": 1}]', "expected one of 0, 1"),
        ("policy", '{"a": ' * 5000, "begins as JSON and is none"),
        ("policy", '{"violation": "\ud800"}', "begins as JSON and is none"),
        (WORDS, "VIOLATION.", "expected one of SAFE, VIOLATION"),
        (WORDS, "not a VIOLATION", "expected one of SAFE, VIOLATION"),
        (WORDS, "1", "expected one of SAFE, VIOLATION"),
        (NESTED, '{"result": 1}', "no field 'result.flag'"),
        (SWITCH, '{"flagged": 1}', "flagged is 1"),
    ],
)
@pytest.mark.parametrize("side", [0, -1])
def test_everything_else_is_an_abstention_whatever_the_analysis_says(grader, final, said, side):
    label = read_grader({"answer": answer_of(grader, side), "grader": grader}, "x:1").label
    _, verdict = judge(grader, final, label, analysis=f"The label is {label}. {label}")
    assert verdict.label is None and not verdict.passed
    assert verdict.note.startswith("no label: ")
    import re

    assert re.search(said, verdict.note), verdict.note


def answer_of(grader, side):
    labels = ["0", "1"] if grader == "policy" else grader.get("labels", ["0", "1"])
    return labels[side]


def test_the_policy_is_named_by_the_row_then_by_its_suite_then_by_its_file():
    row = {"answer": "1", "grader": "policy"}
    assert read_grader(row | {"policy": "spam"}, "a/b.jsonl:3").policy == "spam"
    suite = {"kind": "policy", "policy": "of the suite"}
    assert read_grader({"answer": 1}, "a/b.jsonl:3", suite).policy == "of the suite"
    assert read_grader({"answer": 1, "policy": "own"}, "a/b.jsonl:3", suite).policy == "own"
    assert read_grader(row, "a/medical.jsonl:3").policy == "medical"


def test_equal_graders_are_equal():
    row = {"answer": "1", "policy": "p"}
    one, two = (read_grader(row | {"grader": g}, "x:1") for g in ("policy", {"kind": "policy"}))
    assert one == two and hash(one) == hash(two)
    assert one != read_grader(row | {"grader": WORDS, "answer": "SAFE"}, "x:1")


@pytest.mark.parametrize(
    ("row", "grader", "said"),
    [
        ({}, "policy", "answer is missing; grader policy expects one of 0, 1"),
        ({"answer": "2"}, "policy", "answer is '2'"),
        ({"answer": True}, "policy", "answer is true"),
        ({"answer": ["1"]}, "policy", "answer is a list"),
        ({"answer": "1", "policy": ""}, "policy", "policy is ''"),
        ({"answer": "1", "policy": "# Rules\nDo not"}, "policy", "into the system message"),
        ({"answer": "1", "policy": 3}, "policy", "policy is a number"),
        ({"answer": "a"}, {"labels": ["a", "b"]}, "grader.positive is missing"),
        ({"answer": "a"}, {"labels": ["a"], "positive": "a"}, "expected 2 to 64 labels"),
        ({"answer": "a"}, {"labels": ["a", "A"], "positive": "a"}, "names a label twice"),
        ({"answer": "a"}, {"labels": ["a", "b"], "positive": "c"}, "positive is 'c'"),
        ({"answer": "a"}, {"labels": ["a", "b"], "positive": ["a", "b"]}, "some and not all"),
        ({"answer": "a"}, {"labels": ["a", "b"], "positive": []}, "some and not all"),
        ({"answer": "a"}, {"labels": ["a", {}], "positive": "a"}, "labels holds an object"),
        ({"answer": "1"}, {"field": "a..b"}, "field is 'a..b'"),
        ({"answer": "1"}, {"field": 1}, "field is a number"),
        ({"answer": "1"}, {"label": "1"}, "policy has no setting 'label'; expected labels, pos"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line(row, grader, said):
    named = grader if isinstance(grader, str) else {"kind": "policy", **grader}
    with pytest.raises(DataError, match=f"^f.jsonl:7: .*{said}"):
        read_grader({**row, "grader": named}, "f.jsonl:7")
