"""What is a regression: the interval and the exact test, corrected for all figures."""

import numpy as np
import pytest

from gptoss_tune.safety.paired import (
    compare,
    detectable_rise,
    exact_p,
    findings,
    holm,
    power,
)


def sides(worse, better, both=0, questions=100):
    """Return base and tuned with so many questions that turned."""
    neither = questions - worse - better - both
    base = [False] * worse + [True] * better + [True] * both + [False] * neither
    tuned = [True] * worse + [False] * better + [True] * both + [False] * neither
    return compare(base, tuned)


def test_exact_probabilities_as_worked_by_hand():
    assert exact_p(0, 0) == 1.0 and exact_p(1, 0) == 1.0 and exact_p(3, 3) == 1.0
    assert exact_p(8, 0) == exact_p(0, 8) == 2 / 256
    # At most 1 of 5: (1 + 5) / 32, twice.
    assert exact_p(4, 1) == 12 / 32


def test_holm_as_worked_by_hand():
    # 0.01 * 3; then 0.03 * 2; then 0.04 * 1, which may not fall below the one before it.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_a_comparison_counts_what_turned():
    one = sides(12, 2, both=5)
    assert (one.questions, one.worse, one.better) == (100, 12, 2)
    assert one.base == 0.07 and one.tuned == 0.17 and one.difference == pytest.approx(0.10)
    # The normal interval of the same: 0.10 +- 1.96 * sqrt(0.14 - 0.01) / 10.
    assert one.low == pytest.approx(0.03, abs=0.015) and one.high == pytest.approx(0.17, abs=0.015)
    assert compare([], []) is None


def test_the_interval_is_that_of_questions_drawn_one_by_one():
    base = np.array([False] * 30 + [True] * 6 + [False] * 64)
    tuned = np.array([True] * 30 + [False] * 6 + [False] * 64)
    one = compare(base.tolist(), tuned.tolist())
    drawn = np.random.default_rng(1).integers(0, 100, (4000, 100))
    means = (tuned.astype(float) - base)[drawn].mean(1)
    expected = np.percentile(means, [2.5, 97.5])
    assert [one.low, one.high] == pytest.approx(expected, abs=0.011)


def test_four_questions_that_turned_are_no_regression_whatever_the_bootstrap_says():
    one = sides(4, 0)
    assert one.low > 0 and findings([one]) == ["no difference shown"]


def test_a_regression_improvement_and_noise():
    noise = sides(6, 5)
    assert findings([sides(20, 0), sides(0, 20), noise]) == [
        "regression",
        "improvement",
        "no difference shown",
    ]
    # 2/128 is below 0.05, and below 0.05 / 3; of seven figures it is not below 0.05 / 7.
    assert exact_p(7, 0) == 2 / 128
    assert findings([sides(7, 0), noise, noise])[0] == "regression"
    assert findings([sides(7, 0), *[noise] * 6])[0] == "no difference shown"


def test_power_is_the_share_of_simulated_runs_that_are_called():
    drawn = np.random.default_rng(3).multinomial(100, [0.12, 0.02, 0.86], size=600)
    found = [findings([sides(int(w), int(b))])[0] == "regression" for w, b, _ in drawn]
    assert np.mean(found) == pytest.approx(power(100, 0.12, 1, back=0.02), abs=0.05)


def test_the_table_of_the_guide(request):
    """How many questions find which rise, as docs/safety.md says it."""
    guide = (request.config.rootpath / "docs" / "safety.md").read_text(encoding="utf-8")
    for questions in (20, 50, 100, 200, 500, 1000):
        cells = [
            f"{100 * rise:.0f} %" if (rise := detectable_rise(questions, m, back)) else "none"
            for m, back in ((1, 0.0), (7, 0.0), (7, 0.02))
        ]
        assert f"| {questions:,} | {' | '.join(cells)} |" in guide


def test_too_few_questions_find_no_rise_at_all():
    assert detectable_rise(5, 7) is None
