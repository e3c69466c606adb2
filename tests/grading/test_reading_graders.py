"""What a row says about its grader: mistakes with their place, libraries that are missing."""

import json
import subprocess
import sys

import pytest

from gptoss_tune.errors import DataError, MachineError
from gptoss_tune.evaluate.prompts import read_rows
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.number import Number
from gptoss_tune.grading.rows import NOT_OF_A_ROW, read_grader
from gptoss_tune.grading.rules.counted import COUNTED
from gptoss_tune.grading.rules.stated import STATED


def test_a_grader_with_settings_and_one_for_all_rows():
    usual = {"kind": "number", "tolerance": 0.5, "unit": ["km", "kilometres"]}
    assert read_grader({"answer": 4}, "x:1", usual) == Number(
        ("4",), tolerance=0.5, unit=("km", "kilometres")
    )
    assert read_grader({"answer": 4, "grader": "number"}, "x:1", usual) == Number(("4",))


@pytest.mark.parametrize(
    "end, settings, right, wrong",
    [
        ("1234567890" * 4, {}, "1234567890" * 4, None),
        ("3,5", {"decimal_comma": True}, "3,5", "35"),
        ("75%", {}, "0.75", "7500"),
        ("5/6", {}, "10/12", "0.8333"),
        ("6.02e23", {}, "6.02 × 10²³", "6.02"),
        ("-1,000.50", {}, "−1000.5", "1000.5"),
    ],
)
def test_a_worked_solution_is_an_answer(end, settings, right, wrong):
    row = {"answer": f"{'First one thing. ' * 20}\n#### {end}"}
    grader = read_grader(row, "x:1", {"kind": "number", **settings})
    assert grader.judge(Given(right), 0).passed
    near = f"{end[:-1]}1" if wrong is None else wrong
    assert not grader.judge(Given(near), 0).passed


@pytest.mark.parametrize(
    "row, told",
    [
        ({"answer": "5", "grader": "number", "tolerance": 1}, "'tolerance' is a setting of grader"),
        ({"answer": "5", "grader": {"kind": "number"}, "unit": "km"}, '"kind": "number", "unit"'),
        ({"answer": "5", "grader": "maths", "digits": 3}, "'digits' is a setting of grader maths"),
        (
            {"answer": "5", "grader": "code", "tolerance": 0.1},
            "'tolerance' is a setting of grader code",
        ),
        ({"answer": "5", "gradr": "number"}, "'gradr' says number; did you mean 'grader'[?]"),
        ({"answer": "5", "Grader": {"kind": "number"}}, "did you mean 'grader'"),
    ],
)
def test_a_key_that_would_be_ignored_is_refused(row, told):
    with pytest.raises(DataError, match=f"^x:1: .*{told}"):
        read_grader(row, "x:1")


@pytest.mark.parametrize(
    "row",
    [
        {"answer": "5", "unit": "km", "tolerance": 1},  # exact has no settings: columns of a user
        {"answer": "5", "grader": "number", "grade": "fifth", "digits": 3, "unit": None},
        {"answer": "5", "grade": 5, "graders": "Ann and Bob"},
        {"answer": "5", "grader": {"kind": "number", "tolerance": 1}, "tolerance": 1},
    ],
)
def test_columns_of_a_user_that_mean_no_setting_are_left_alone(row):
    assert read_grader(row, "x:1") is not None


@pytest.mark.parametrize(
    "kind, key", [(kind, k) for kind in NOT_OF_A_ROW for k in NOT_OF_A_ROW[kind]]
)
def test_each_setting_that_a_row_cannot_have_is_one(kind, key):
    """The grader knows it: what is wrong with the row is something else."""
    with pytest.raises(DataError) as error:
        read_grader({"grader": {"kind": kind, key: object()}}, "x:1")
    assert "has no setting" not in str(error.value)


def test_there_are_over_twenty_rules():
    assert len(COUNTED) + len(STATED) == 31 and not COUNTED.keys() & STATED.keys()


CHOICES = {"choices": ["a", "b"], "grader": "choice"}
MISTAKES = [
    ({"answer": "six", "grader": "number"}, "cannot read .there is no number"),
    ({"answer": "3 or 4", "grader": "number"}, "cannot read .several numbers"),
    ({"grader": "number"}, "answer is null; grader number expects a number"),
    ({"answer": [], "grader": "number"}, "answer is an empty list"),
    ({"answer": 4, "grader": {"kind": "number", "tol": 1}}, "no setting 'tol'; expected tolerance"),
    ({"answer": 4, "grader": {"kind": "number", "tolerance": -1}}, "expected a number from 0 on"),
    ({"answer": 4, "grader": {"kind": "number", "decimal_comma": "yes"}}, "true or false"),
    ({"answer": 4, "grader": {"kind": "number", "read": "first"}}, "one of marked, last"),
    ({"answer": "c", **CHOICES}, "a letter from A to B, or the text of one of the choices"),
    ({"answer": "K", "grader": "choice"}, "expects a letter from A to J$"),
    (
        {"answer": "A", "choices": ["a", "A."], "grader": "choice"},
        "two of the choices are the same",
    ),
    ({"answer": "A", "choices": ["a"], "grader": "choice"}, "choices has one entry"),
    ({"answer": "the sum", "grader": "maths"}, "cannot read .it is prose."),
    ({"answer": r"\frac{1", "grader": "maths"}, "no mathematics that math-verify knows"),
    (
        {"rules": [{"rule": "word"}], "grader": "rules"},
        r"rules\[0\].rule is 'word'; expected one of",
    ),
    ({"rules": [{"rule": "words"}], "grader": "rules"}, "needs at_least, at_most or exactly"),
    ({"rules": [{"rule": "keywords"}], "grader": "rules"}, "rule keywords needs keywords"),
    ({"rules": [{"rule": "title", "at_most": 1}], "grader": "rules"}, "no setting 'at_most'"),
    ({"rules": [{"rule": "lines", "at_least": 3, "at_most": 2}], "grader": "rules"}, "nothing can"),
    (
        {"rules": [{"rule": "script", "script": "runes"}], "grader": "rules"},
        "expected one of latin",
    ),
    (
        {"rules": [{"rule": "letter_frequency", "letter": "ab", "at_most": 1}], "grader": "rules"},
        "one",
    ),
    ({"rules": [{"rule": "repeat_prompt"}], "grader": "rules"}, "needs prompt"),
    ({"rules": [], "grader": "rules"}, "a list of 1 to 32"),
    ({"grader": "rules"}, "rules is null"),
    ({"grader": "calls"}, "calls is null"),
    ({"calls": [{"arguments": {}}], "grader": "calls"}, r"calls\[0\].name is null; expected text"),
    (
        {"calls": [{"name": "f", "args": {}}], "grader": "calls"},
        "the key 'args'; expected name, arg",
    ),
    ({"calls": [{"name": "f", "arguments": [1]}], "grader": "calls"}, "arguments is a list"),
    ({"calls": [{"name": "f", "arguments": "{"}], "grader": "calls"}, "arguments is not JSON"),
    ({"calls": [{"name": "f", "match": {"a": {}}}], "grader": "calls"}, "or anything: true"),
    (
        {"calls": [{"name": "f", "match": {"a": {"any": []}}}], "grader": "calls"},
        "no setting 'any'",
    ),
    ({"calls": [{"name": "python", "arguments": {"a": 1}}], "grader": "calls"}, "which takes code"),
    ({"calls": [], "grader": {"kind": "calls", "match": "any"}}, "calls names none"),
    ({"grader": "json_schema"}, "schema is null"),
    ({"schema": {"type": "number?"}, "grader": "json_schema"}, "schema cannot be used"),
    ({"schema": {}, "equals": [1], "grader": "json_schema"}, "equals is a list"),
    ({"answer": 4, "grader": "numbers"}, "expected one of exact, pattern, number"),
]


@pytest.mark.parametrize("row, told", MISTAKES)
def test_what_cannot_be_used_is_refused_with_its_place(row, told):
    with pytest.raises(DataError, match=rf"^x:1: (?s:.*){told}"):
        read_grader(row, "x:1")


@pytest.mark.parametrize(
    "row, library",
    [
        ({"answer": "x", "grader": "maths"}, "math_verify"),
        ({"schema": {}, "grader": "json_schema"}, "jsonschema"),
    ],
)
def test_a_grader_whose_library_is_missing_names_the_extra(monkeypatch, row, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MachineError) as caught:
        read_grader(row, "my.jsonl:3")
    assert str(caught.value) == (
        f"my.jsonl:3: grader {row['grader']}: this needs the extra 'graders': pip install "
        f"\"gptoss-tune[graders]\" (there is no module '{library}')"
    )


def test_a_missing_library_ends_the_reading_of_prompts_at_its_row(monkeypatch, tmp_path):
    """Before any weights: an evaluator reads its files first."""
    monkeypatch.setitem(sys.modules, "math_verify", None)
    rows = [{"prompt": "1 + 1?", "answer": "2"}, {"prompt": "x?", "answer": "x", "grader": "maths"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(MachineError, match=r"rows\.jsonl:2: grader maths: this needs") as e:
        read_rows([str(path)], 10, read_grader)
    assert e.value.exit_code == 3 and "\n" not in str(e.value)


def test_all_mistakes_of_a_file_are_in_one_message(tmp_path):
    rows = [{"prompt": "?", **row} for row, _ in MISTAKES[:12]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(DataError, match=r"^12 rows cannot be evaluated with") as caught:
        read_rows([str(path)], 100, read_grader)
    assert [f"rows.jsonl:{n}: " in str(caught.value) for n in range(1, 14)] == [True] * 12 + [False]


def test_graders_bring_neither_torch_nor_their_libraries():
    code = (
        "import sys, gptoss_tune.grading.rows; "
        "heavy = {'torch', 'transformers', 'sympy', 'math_verify', 'jsonschema'}; "
        "heavy &= set(sys.modules); "
        "rooms = [m for m in sys.modules if m.startswith('gptoss_tune.benchmark')]; "
        "assert not heavy and not rooms, (heavy, rooms)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
