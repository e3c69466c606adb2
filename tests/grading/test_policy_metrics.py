"""Figures per policy against tables worked by hand, and scikit-learn's of the same answers."""

import math

import pytest
from sklearn import metrics

from gptoss_tune.errors import DataError
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.policy_metrics import (
    metric_name,
    outcomes,
    policies_report,
    policy_figures,
    refuse_equal_names,
    wilson,
)
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.grading.text import read_exact

# What is expected and what is answered, of two policies of unequal size; "?" is no label.
SPAM = [*["11"] * 6, "10", *["1?"] * 3, *["00"] * 8, "01", "01"]
CARE = ["11", "11", "10", "00", "00", "01"]


def judged(policy, pairs, grader="policy"):
    for expected, answered in pairs:
        made = read_grader({"answer": expected, "policy": policy, "grader": grader}, "x:1")
        yield made, made.judge(Given(answered), 0)


def test_a_table_worked_by_hand():
    report = policies_report([*judged("spam", SPAM), *judged("care", CARE)])
    spam, care = report["by_policy"]["spam"], report["by_policy"]["care"]
    counts = ("rows", "positives", "true_positive", "false_positive", "true_negative")
    counts += ("false_negative", "abstained", "abstained_positive", "exact")
    assert [spam[name] for name in counts] == [20, 10, 6, 2, 8, 1, 3, 3, 14]
    assert spam["precision"] == 6 / 8 and spam["recall"] == 6 / 10
    assert spam["specificity"] == 8 / 10 and spam["f1"] == pytest.approx(12 / 18, abs=1e-15)
    assert [care[name] for name in counts] == [6, 3, 2, 1, 2, 1, 0, 0, 4]
    assert [care[name] for name in ("precision", "recall", "specificity")] == [2 / 3] * 3
    assert care["f1"] == pytest.approx(2 / 3, abs=1e-15)
    macro = report["macro"]
    # The mean of the two policies, which the pooled (micro) figures are not: 8 of 11 and 8 of 13.
    assert macro["precision"] == pytest.approx((6 / 8 + 2 / 3) / 2, abs=1e-15)
    assert macro["recall"] == pytest.approx((6 / 10 + 2 / 3) / 2, abs=1e-15)
    assert macro["specificity"] == pytest.approx((8 / 10 + 2 / 3) / 2, abs=1e-15)
    assert abs(macro["precision"] - 8 / 11) > 0.01 and abs(macro["recall"] - 8 / 13) > 0.01
    assert macro["policies"] == 2 and macro["abstained"] == 3 and macro["rows"] == 26


def test_which_label_is_the_positive_one_decides():
    grader = {"kind": "policy", "labels": ["0", "1"], "positive": "0"}
    swapped = policies_report(judged("spam", SPAM, grader))["by_policy"]["spam"]
    assert [swapped[name] for name in ("positives", "true_positive", "abstained_positive")] == [
        *(10, 8, 0)
    ]
    assert swapped["precision"] == 8 / 9 and swapped["recall"] == 8 / 10
    assert swapped["specificity"] == 6 / 10


def test_an_abstention_is_neither_label():
    fine = ["00"] * 4
    (full,) = policies_report(judged("p", fine))["by_policy"].values()
    (half,) = policies_report(judged("p", [*fine[:2], "0?", "0?"]))["by_policy"].values()
    assert full["specificity"] == 1 and half["specificity"] == 0.5
    assert half["true_negative"] == 2 and half["false_positive"] == 0 and half["abstained"] == 2
    (missed,) = policies_report(judged("p", ["11", "1?"]))["by_policy"].values()
    assert missed["recall"] == 0.5 and missed["precision"] == 1 and missed["false_negative"] == 0
    assert missed["f1"] == pytest.approx(2 / 3, abs=1e-15)


def test_abstaining_makes_no_figure_better_than_the_right_label_does():
    """It may well be better than a wrong one: without the two false alarms precision is 1."""
    pairs = [*["11"] * 6, *["01"] * 2, *["00"] * 8, "10", *["1?"] * 3]
    told, silent = (
        policies_report(judged("p", made))["by_policy"]["p"]
        for made in (pairs, [pair.replace("01", "0?") for pair in pairs])
    )
    assert (told["precision"], silent["precision"]) == (0.75, 1.0)
    assert told["f1"] == pytest.approx(12 / 18) and silent["f1"] == pytest.approx(12 / 16)
    for place, (expected, _) in enumerate(pairs):
        abstained, right = (
            policies_report(judged("p", [*pairs[:place], expected + said, *pairs[place + 1 :]]))
            for said in ("?", expected)
        )
        for rate in ("f1", "precision", "recall", "specificity"):
            best, found = (one["by_policy"]["p"][rate] for one in (right, abstained))
            assert found <= best, (place, rate)


def test_more_than_two_labels_count_as_violated_or_not_and_by_the_very_label():
    grader = {"kind": "policy", "labels": ["A", "B", "C"], "positive": ["B", "C"]}
    pairs = [("A", "A"), ("B", "C"), ("C", "C"), ("A", "B"), ("C", "A")]
    (found,) = policies_report(judged("p", pairs, grader))["by_policy"].values()
    assert found["true_positive"] == 2 and found["exact"] == 2
    assert found["precision"] == 2 / 3 and found["recall"] == 2 / 3
    assert found["specificity"] == 0.5


def test_figures_that_have_nothing_to_divide_by_are_none_and_counted():
    report = policies_report([*judged("never", ["10", "00"]), *judged("care", CARE)])
    never, macro = report["by_policy"]["never"], report["macro"]
    assert never["precision"] is None and never["intervals"]["precision"] is None
    assert never["recall"] == 0 and never["f1"] == 0 and never["specificity"] == 1
    assert macro["precision"] == pytest.approx(2 / 3) and macro["precision_policies"] == 1
    assert macro["f1"] == pytest.approx(1 / 3) and "f1_policies" not in macro
    figures = policy_figures(report)
    assert "eval_precision_never" not in figures and figures["eval_recall_never"] == 0
    (only,) = policies_report(judged("p", ["00"]))["by_policy"].values()
    assert only["f1"] is only["recall"] is only["precision"] is None


@pytest.mark.parametrize(
    ("part", "whole", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilsons_interval_is_the_published_one(part, whole, low, high):
    found = wilson(part, whole)
    assert found.value == part / whole
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_wilsons_interval_holds_its_own_equation():
    for part, whole in ((1, 3), (7, 9), (40, 90), (0, 1)):
        found = wilson(part, whole)
        for end in (found.low, found.high):
            if 0 < end < 1:
                error = abs(part / whole - end) / math.sqrt(end * (1 - end) / whole)
                assert error == pytest.approx(1.959963984540054, rel=1e-12)
    assert wilson(0, 0) is None


def test_the_interval_of_f1_is_that_of_its_share_of_tp():
    (found,) = policies_report(judged("p", SPAM))["by_policy"].values()
    share = wilson(6, 12)  # 6 found, 2 wrongly, 4 missed
    expected = [2 * share.low / (1 + share.low), 2 * share.high / (1 + share.high)]
    assert found["intervals"]["f1"] == expected
    assert expected[0] < found["f1"] < expected[1]


def test_policies_are_not_mixed_and_other_graders_passed_over():
    mixed = [
        pair for two in zip(judged("b", CARE), judged("a", SPAM), strict=False) for pair in two
    ]
    exact = read_exact("1", "x:1")
    found = outcomes([(exact, exact.judge(Given("1"), 0)), *mixed, (None, mixed[0][1])])
    assert list(found) == ["b", "a"] and [one.rows for one in found.values()] == [6, 6]
    assert policies_report([(exact, exact.judge(Given("1"), 0))]) is None
    assert policy_figures(None) == {}


def test_names_of_figures_are_safe_and_stable():
    figures = policy_figures(policies_report(judged("Marketplace spam", SPAM)))
    assert figures["eval_recall_marketplace_spam"] == 0.6
    assert figures["eval_abstained_marketplace_spam"] == 0.15
    assert figures["eval_abstained_macro"] == 0.15
    assert figures["eval_f1_macro"] == figures["eval_f1_marketplace_spam"]
    assert set(figures) == {
        f"eval_{what}_{whose}"
        for what in ("f1", "precision", "recall", "specificity", "abstained")
        for whose in ("marketplace_spam", "macro")
    }
    names = [metric_name(name) for name in ("Spam (EU)", "Spam (US)", "垃圾", "--", "a.b")]
    assert names[0] == "spam_eu_1483fc" and names[1].startswith("spam_us_")
    assert len(set(names)) == 5 and all(name.isascii() and name.isidentifier() for name in names)


def test_policies_with_one_name_in_the_figures_are_refused():
    def graders(*names):
        return [read_grader({"answer": 1, "policy": n, "grader": "policy"}, "x:1") for n in names]

    refuse_equal_names([None, *graders("a b", "a-c", "a b", "b")])
    with pytest.raises(DataError, match=r"'a b' and 'a-b' are one name .*eval_f1_a_b"):
        refuse_equal_names(graders("a b", "a-b"))
    with pytest.raises(DataError, match=r"'Macro', as the average"):
        refuse_equal_names(graders("Macro"))


def test_scikit_learn_says_the_same():
    (found,) = policies_report(judged("p", SPAM))["by_policy"].values()
    expected, answered = zip(*SPAM, strict=True)
    theirs = metrics.precision_recall_fscore_support(
        expected, answered, labels=["1"], average=None, zero_division=0
    )
    ours = [found[name] for name in ("precision", "recall", "f1")]
    assert ours == pytest.approx([float(one[0]) for one in theirs[:3]], abs=1e-15)
