"""Components that look at how an episode went, against values worked by hand."""

import pytest

from gptoss_tune.environments.rewards.components import (
    format_health,
    shortness,
    well_formed_calls,
)
from gptoss_tune.grading.answer import Call, Given

A_CALL = (Call("price", '{"item": "pear"}'),)
BOTH = Given("It costs 7.", A_CALL, "Hm.")

# What was said, how it ended, its faults -> the share by hand.
FORMATS = {
    "one final answer": (["7"], "answer", 0, 1.0),
    "a call, then the answer": ([A_CALL, "7"], "answer", 0, 1.0),
    "no answer at all": ([], "time", 0, 0.0),
    "an empty final text": ([" "], "answer", 0, 0.0),
    "thoughts alone": ([None], "answer", 0, 0.0),
    "one of four with a fault": ([A_CALL, A_CALL, A_CALL, "7"], "answer", 1, 3 / 4),
    "a fault of the one that is not whole either": ([A_CALL, None, "7"], "answer", 1, 2 / 3),
    "more faults than answers": ([A_CALL, "7"], "answer", 5, 0.0),
    "a call that is the answer, as of a row whose tools nobody runs": ([A_CALL], "answer", 0, 1.0),
    "cut at its longest, in the final text": ([A_CALL, "It cos"], "length", 0, 1 / 2),
    "cut at its longest, in the arguments": ([A_CALL, A_CALL, A_CALL], "length", 0, 2 / 3),
    "was no harmony": ([A_CALL, "7"], "format", 1, 1 / 2),
    "out of turns after a call": ([A_CALL, A_CALL], "turns", 0, 1.0),
    "the environment raised": ([A_CALL], "error", 0, 1.0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_format(name, episode):
    said, ended, faults, expected = FORMATS[name]
    outcome = episode(*said, ended=ended, faults=tuple(map(str, range(faults))))
    assert format_health(outcome) == pytest.approx(expected, abs=1e-12)


def test_an_answer_that_calls_and_ends_is_not_whole(episode):
    outcome = episode("7")
    outcome = type(outcome)(**{**vars(outcome), "answers": (BOTH, Given("7", (), "Hm."))})
    assert format_health(outcome) == 1 / 2


def test_nothing_thought_anywhere_halves_it(episode):
    assert format_health(episode(A_CALL, "7", thoughts=" ")) == 0.5
    outcome = episode(A_CALL, "7", thoughts="")
    one = (Given(None, A_CALL, "First the price."), Given("7"))
    assert format_health(type(outcome)(**{**vars(outcome), "answers": one})) == 1.0


def test_calls(episode, use):
    assert well_formed_calls(episode("7")) == 1.0
    assert well_formed_calls(episode(A_CALL, "7", uses=(use(),))) == 1.0
    wrong, fails = use(wrong_by_model=True), use(wrong_by_model=False)
    assert well_formed_calls(episode("7", uses=(wrong,))) == 0.0
    assert well_formed_calls(episode("7", uses=(use(), wrong, use(), fails))) == 3 / 4


# Tokens, answers, target, of at most 100 each -> by hand.
LENGTHS = [
    (50, 1, None, 1.0),
    (51, 1, None, 49 / 50),
    (75, 1, None, 0.5),
    (100, 1, None, 0.0),
    (140, 1, None, 0.0),  # tokens of tools are none of the model's, but a sampler may be late
    (150, 2, None, 0.5),
    (0, 1, 20, 1.0),
    (40, 1, 20, 60 / 80),
    (60, 3, 20, 1.0),
]


@pytest.mark.parametrize(("tokens", "answers", "target", "expected"), LENGTHS)
def test_length(tokens, answers, target, expected, episode):
    said = [A_CALL] * (answers - 1) + ["7"]
    assert shortness(episode(*said, tokens=tokens), target) == pytest.approx(expected)


@pytest.mark.parametrize("ended", ["length", "turns", "tokens", "time", "format", "error"])
def test_to_be_cut_off_is_not_short(ended, episode):
    assert shortness(episode("7", tokens=1, ended=ended), None) == 0.0
    assert shortness(episode("7", tokens=1), None) == 1.0


def test_a_target_over_the_longest_is_refused(episode):
    with pytest.raises(ValueError, match="longest is 100 tokens; expected more than the target"):
        shortness(episode("7", tokens=1), 100)
