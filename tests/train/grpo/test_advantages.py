"""Advantages, penalties and weights of tokens against groups worked by hand."""

import math

import numpy as np
import pytest

from gptoss_tune.train.grpo.advantages import (
    group_advantages,
    has_signal,
    overlong_penalty,
    token_weights,
)


def test_an_advantage_is_what_was_earned_above_the_group():
    found = group_advantages([[1, 0, 0, 1], [3, 1, 1, 1]], scale_by_std=False)
    assert found.tolist() == [[0.5, -0.5, -0.5, 0.5], [1.5, -0.5, -0.5, -0.5]]


def test_scaled_by_the_standard_deviation_of_the_sample():
    # 1, 0, 0, 1: squares of 0.5 four times over n - 1 = 3.  3, 1, 1, 1: 2.25 + 3 * 0.25 over 3.
    found = group_advantages([[1, 0, 0, 1], [3, 1, 1, 1]], scale_by_std=True)
    first, second = math.sqrt(1 / 3) + 1e-4, 1.0 + 1e-4
    expected = [[0.5 / first, -0.5 / first, -0.5 / first, 0.5 / first]]
    expected += [[1.5 / second, -0.5 / second, -0.5 / second, -0.5 / second]]
    assert np.allclose(found, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_group_whose_rewards_are_all_the_same_has_no_signal_and_no_advantage(scaled):
    # Sums of weighted components may differ in their last digit.
    rewards = [[0.1 + 0.2, 0.3, 0.3], [0.1, 0.1, 0.1], [0, 0, 1e-3], [-2, -2, -1]]
    assert has_signal(rewards).tolist() == [False, False, True, True]
    found = group_advantages(rewards, scale_by_std=scaled)
    assert (found[:2] == 0).all() and (found[2:] != 0).all()
    assert np.allclose(found.sum(1), 0, atol=1e-12)


def test_the_penalty_of_long_answers_grows_over_the_buffer():
    found = overlong_penalty([0, 79, 80, 81, 85, 99, 100, 300], longest=100, buffer=20)
    assert found.tolist() == [0, 0, 0, -0.05, -0.25, -0.95, -1, -1]
    assert overlong_penalty(3, longest=4, buffer=4) == -0.75
    assert not np.signbit(overlong_penalty([1, 80], longest=100, buffer=20)).any()


def test_weights_of_tokens_are_those_of_the_whole_step():
    tokens = [2, 6, 0]
    assert token_weights(tokens, "token", longest=16).tolist() == [1 / 8, 1 / 8, 0]
    assert token_weights(tokens, "sequence", longest=16).tolist() == [1 / 4, 1 / 12, 0]
    assert token_weights(tokens, "constant", longest=16).tolist() == [1 / 32, 1 / 32, 0]
    for average in ("token", "sequence"):
        weights = token_weights([5, 1, 17, 0, 9], average, longest=16)
        assert np.dot(weights, [5, 1, 17, 0, 9]) == pytest.approx(1, rel=1e-15)
    assert token_weights([0, 0], "token", longest=16).tolist() == [0, 0]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"at least 2 episodes"):
        group_advantages([[1], [2]], scale_by_std=True)
    with pytest.raises(ValueError, match=r"\[groups, episodes\]"):
        has_signal([1, 2])
    with pytest.raises(ValueError, match="NaN or infinite"):
        group_advantages([[1, float("nan")]], scale_by_std=True)
    with pytest.raises(ValueError, match="1 to 8 tokens"):
        overlong_penalty(3, longest=8, buffer=9)
    with pytest.raises(ValueError, match="must not be negative"):
        token_weights([1, -1], "token", longest=8)
    with pytest.raises(ValueError, match="token, sequence or constant"):
        token_weights([1], "mean", longest=8)
