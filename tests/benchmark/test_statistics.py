"""Intervals, paired differences and pass@k against enumeration, hand-worked values, simulation."""

import itertools
import math

import numpy as np
import pytest

from gptoss_tune.benchmark.statistics import difference, pass_at, share


def wilson(right, total):
    return share(rows([1] * right + [0] * (total - right)))


def rows(values):
    """One answer a row."""
    return [[bool(value)] for value in values]


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_equals_the_mean_over_all_draws(n):
    for right in range(n + 1):
        answers = [True] * right + [False] * (n - right)
        for k in range(1, n + 1):
            draws = [any(draw) for draw in itertools.combinations(answers, k)]
            assert pass_at(k, [answers]) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


def test_pass_at_k_by_hand():
    # 1 right of 4: 1 - C(3,2)/C(4,2) = 1 - 3/6; 2 of 4: 1 - 1/6; mean 2/3.
    two = [[True, False, False, False], [True, True, False, False]]
    assert pass_at(2, two) == pytest.approx((1 / 2 + 5 / 6) / 2)
    # The biased estimator, 1 - (1 - c/n)^k, would say (7/16 + 3/4) / 2.
    assert pass_at(2, two) > (7 / 16 + 3 / 4) / 2
    with pytest.raises(ValueError, match="needs 5 answers"):
        pass_at(5, two)


def test_wilson_by_hand():
    # Newcombe, 1998: 81 of 263, Wilson's interval 0.2553 to 0.3662.
    found = wilson(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 10).low == 0 and 0.27 < wilson(0, 10).high < 0.28
    assert wilson(10, 10).high == 1 and 0.72 < wilson(10, 10).low < 0.73


def test_the_interval_of_a_share_covers_it():
    rng = np.random.default_rng(3)
    for n, p in ((20, 0.5), (40, 0.9), (100, 0.1)):
        draws = rng.binomial(n, p, size=2_000)
        hits = [wilson(int(d), n).low <= p <= wilson(int(d), n).high for d in draws]
        assert 0.92 < np.mean(hits) < 0.99


def test_the_interval_of_a_difference_covers_it():
    """Paired answers, correlated; 300 worlds with a known difference."""
    rng = np.random.default_rng(11)
    n, hits, worlds = 60, 0, 300
    for _ in range(worlds):
        easy = rng.random(n)
        first, ours = easy < 0.5, (easy < 0.5) ^ (rng.random(n) < 0.3)
        # P(ours) - P(first) = 0.5*0.7 + 0.5*0.3 - 0.5 = 0
        found = difference(rows(ours), rows(first))
        hits += found.low <= 0 <= found.high
    assert 0.9 < hits / worlds < 0.99


def test_clusters_are_not_taken_for_independent_answers():
    """Eight equal answers to each row say no more than one does."""
    rng = np.random.default_rng(5)
    one = rng.random(30) < 0.5
    alone, repeated = share(rows(one)), share([[bool(v)] * 8 for v in one])
    wide, narrow = repeated.high - repeated.low, wilson(int(one.sum()) * 8, 240)
    assert wide > 0.8 * (alone.high - alone.low)
    assert wide > 2 * (narrow.high - narrow.low)


def test_noise_is_rare_where_there_is_a_difference_and_usual_where_there_is_none():
    rng = np.random.default_rng(7)
    called = 0
    for _ in range(200):
        a, b = rng.random(40) < 0.6, rng.random(40) < 0.6
        called += not difference(rows(a), rows(b)).within_noise
    assert called / 200 < 0.07, "a difference was called in equal subjects"
    better = difference(rows([1] * 36 + [0] * 4), rows([1] * 16 + [0] * 24))
    assert not better.within_noise and better.value == 0.5 and better.low > 0.3


def test_a_few_rows_that_all_changed_alike_are_no_proof():
    # The bootstrap's interval has no width here; 2 of 2^3 ways to swap are as good: p = 0.25.
    three = difference(rows([1, 1, 1]), rows([0, 0, 0]))
    assert (three.value, three.low, three.p) == (1.0, 1.0, 0.25) and three.within_noise
    six = difference(rows([1] * 6), rows([0] * 6))
    assert six.p == pytest.approx(2 / 2**6) and not six.within_noise


def test_the_test_of_signs_equals_mcnemars_exact_one():
    # 9 rows got better, 2 worse, 30 stayed: 2 * P(X <= 2), X ~ Binomial(11, 1/2).
    ours = [1] * 9 + [0] * 2 + [1] * 30
    first = [0] * 9 + [1] * 2 + [1] * 30
    tail = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert difference(rows(ours), rows(first)).p == pytest.approx(tail)


@pytest.mark.parametrize(
    "better, worse, noise", [(22, 10, True), (29, 15, False), (260, 200, False)]
)
def test_mcnemars_is_exact_however_many_rows_changed(better, worse, noise):
    """The first two are so near 0.05 that drawn signs give the other verdict."""
    n = better + worse
    tail = 2 * sum(math.comb(n, k) for k in range(worse + 1)) / 2**n
    found = difference(rows([1] * better + [0] * worse), rows([0] * better + [1] * worse))
    assert found.p == pytest.approx(tail, rel=1e-12)
    assert found.within_noise == (tail >= 0.05) == noise
    twice = difference(
        [[True, True]] * better + [[False, False]] * worse,
        [[True, False]] * better + [[False, True]] * worse,
    )
    assert twice.p == pytest.approx(tail, rel=1e-12), "half a row is as good a step as a whole one"


def test_steps_of_several_sizes_are_drawn():
    ours = [[True, True]] * 12 + [[True, False]] * 8 + [[False, False]] * 5
    first = [[False, False]] * 20 + [[True, True]] * 5
    found = difference(ours, first)
    assert 0 < found.p < 0.05 and found == difference(ours, first)


def test_as_many_better_as_worse_is_no_difference():
    assert difference(rows([1] * 20 + [0] * 20), rows([0] * 20 + [1] * 20)).p == 1


def test_equal_answers_differ_by_nothing():
    same = rows([1, 0, 1, 1, 0])
    found = difference(same, same)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1) and found.within_noise


def test_the_same_answers_give_the_same_figures():
    ours, first = rows([1, 0, 1, 1, 0, 1, 1]), rows([0, 0, 1, 0, 0, 1, 1])
    assert difference(ours, first) == difference(ours, first)
    assert share([[True, False], [True, True]]) == share([[True, False], [True, True]])


def test_rows_that_are_all_right_at_all_samples_prove_no_certainty():
    found = share([[True, True]] * 10)
    assert found.value == 1 and 0.7 < found.low < 0.75 and found.high == 1
