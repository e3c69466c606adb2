"""The figures of policies as text: intervals, before and after, and nothing of a damaged file."""

import pytest

from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.policy_metrics import policies_report
from gptoss_tune.grading.policy_table import HEADS, MOST_POLICIES, policy_rows
from gptoss_tune.grading.rows import read_grader


def report_of(**policies):
    judged = []
    for policy, pairs in policies.items():
        for expected, answered in pairs:
            row = {"answer": expected, "policy": policy, "grader": "policy"}
            grader = read_grader(row, "x:1")
            judged.append((grader, grader.judge(Given(answered), 0)))
    return policies_report(judged)


HALF = [*["11"] * 4, *["10"] * 4, *["00"] * 7, "0?"]


def test_a_policy_has_its_figures_with_intervals_and_several_an_average():
    rows = policy_rows(report_of(half=HALF, all=["11", "00"]))
    assert all(len(row) == len(HEADS) for row in rows)
    # 4 of 8 and 7 of 8 by Wilson; F1 is 2 * 4 / (2 * 4 + 4), of 4 in 8.
    assert rows[0] == [
        *("half", "16", "8", "0.67 (0.35-0.88)", "1.00 (0.51-1.00)", "0.50 (0.22-0.78)"),
        *("0.88 (0.53-0.98)", "1"),
    ]
    assert rows[2] == ["macro average", "18", "–", "0.83", "1.00", "0.75", "0.94", "1"]
    assert len(policy_rows(report_of(half=HALF))) == 1


def test_before_and_after_stand_in_one_cell():
    before = report_of(half=["1?"] * 8 + ["0?"] * 8)
    (row,) = policy_rows(report_of(half=HALF), before)
    assert row[3] == "0.00 → 0.67 (0.35-0.88)" and row[4] == "– → 1.00 (0.51-1.00)"
    assert row[-1] == "16 → 1"


@pytest.mark.parametrize(
    "report",
    [None, [], "x", {}, {"by_policy": []}, {"by_policy": {}}, {"macro": {"f1": 1.0}}],
)
def test_what_is_no_report_has_no_rows(report):
    assert policy_rows(report) == []


def test_values_that_are_no_figures_are_dashes():
    strange = [float("nan"), -1, 2, "0.5", True, None, [1], {"a": 1}, 10**400]
    for value in strange:
        one = dict.fromkeys(("rows", "positives", "abstained", "f1", "precision"), value)
        one |= {"rows": -1, "positives": 1.5, "abstained": True, "intervals": value}
        (row,) = policy_rows({"by_policy": {"p": one}})
        assert row == ["p", *["–"] * 7], value
    bad = {"f1": 0.5, "intervals": {"f1": ["<b>", None]}}
    assert policy_rows({"by_policy": {"p": bad}})[0][3] == "0.50 (–-–)"


def test_no_more_policies_are_shown_than_a_page_has_room_for():
    rows = policy_rows({"by_policy": {f"p{n}": {} for n in range(MOST_POLICIES + 5)}})
    assert len(rows) == MOST_POLICIES + 2 and rows[-2] == ["and 5 more"]
