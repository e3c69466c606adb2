"""What counts as the best evaluation, and as one without improvement."""

import json
import math

import pytest

from gptoss_tune.train.best.standing import Best, Patience


def taken(best, *values, begin=1):
    return [best.take(step, value) for step, value in enumerate(values, begin)]


def test_the_lowest_is_best_of_losses_and_the_highest_of_shares():
    best = Best("eval_loss", "min")
    assert taken(best, 3.0, 2.0, 2.5) == [True, True, False]
    assert (best.value, best.step) == (2.0, 2)
    best = Best("eval_graded", "max")
    assert taken(best, 0.1, 0.3, 0.2) == [True, True, False]
    assert (best.value, best.step) == (0.3, 2)


def test_of_two_equal_values_the_earlier_one_stays():
    best = Best("eval_graded", "max")
    assert taken(best, 0.5, 0.5) == [True, False]
    assert best.step == 1


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("goal", ["min", "max"])
def test_what_is_no_number_never_is_best_nor_an_improvement(goal, odd):
    best, patience = Best("eval_loss", goal), Patience("eval_loss", goal, 3, 0.0)
    for one in (best, patience):
        taken(one, odd)
        assert one.value is None
        taken(one, 2.0, odd, begin=2)
        assert (one.value, one.step) == (2.0, 2)
    assert patience.waited == 1


def test_an_evaluation_counts_once():
    best, patience = Best("eval_loss", "min"), Patience("eval_loss", "min", 2, 0.0)
    for one in (best, patience):
        for step, value in ((1, 2.0), (2, 3.0), (2, 1.0), (1, 0.5)):
            one.take(step, value)
        assert (one.value, one.step) == (2.0, 1)
    assert patience.waited == 1 and not patience.over
    patience.take(3, 2.5)
    assert patience.over


def test_a_gain_of_min_delta_or_less_is_none():
    patience = Patience("eval_loss", "min", 2, 0.25)
    taken(patience, 3.0, 2.75)
    assert (patience.value, patience.waited) == (3.0, 1)
    # Each is better than the one before, and none by more than 0.25 than the last improvement.
    patience.take(3, 2.75)
    assert patience.over
    patience.take(4, 0.0)
    assert patience.over and patience.value == 3.0
    other = Patience("eval_loss", "min", 2, 0.25)
    taken(other, 3.0, 2.8, 2.7)
    assert (other.value, other.step, other.waited) == (2.7, 3, 0)


def test_a_state_is_taken_up_where_it_was_left():
    whole, first = (Patience("eval_loss", "min", 3, 0.1) for _ in range(2))
    values = [3.0, 2.95, 2.5, 2.6, 2.45, 2.41]
    taken(whole, *values)
    taken(first, *values[:3])
    second = Patience("eval_loss", "min", 3, 0.1)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    taken(second, *values[3:], begin=4)
    assert second == whole and whole.over


@pytest.mark.parametrize(
    "changed",
    [
        {"metric": "eval_graded"},
        {"goal": "max"},
        {"value": "low"},
        {"value": math.nan},
        {"value": True},
        {"step": -1},
        {"seen": 1.5},
        {"waited": None},
    ],
    ids=str,
)
def test_a_state_that_no_run_wrote_is_refused(changed):
    patience = Patience("eval_loss", "min", 3, 0.1)
    taken(patience, 2.0, 3.0)
    state = patience.state_dict() | changed
    other = Patience("eval_loss", "min", 3, 0.1)
    with pytest.raises(ValueError):
        other.load_state_dict(state)
    assert other == Patience("eval_loss", "min", 3, 0.1)


def test_how_long_to_wait_is_the_recipes():
    patience = Patience("eval_loss", "min", 3, 0.1)
    taken(patience, 2.0, 3.0)
    other = Patience("eval_loss", "min", 1, 0.0)
    other.load_state_dict(patience.state_dict())
    assert (other.patience, other.min_delta, other.waited, other.over) == (1, 0.0, 1, True)
