"""The reward function: components, weights, and what fails beside them."""

import math
from collections.abc import Mapping

import pytest

from gptoss_tune.environments.bounded import reason
from gptoss_tune.environments.rewards.reward import LARGEST, RewardFunction
from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.grading.answer import Call, Given


class Own:
    """An environment whose reward is what it was made with; an exception is raised."""

    def __init__(self, gives):
        self.gives = gives

    def reset(self, row, seed):
        return None

    def tools(self):
        return ()

    def reward(self, outcome):
        if isinstance(self.gives, BaseException):
            raise self.gives
        return self.gives(outcome) if callable(self.gives) else self.gives


def test_a_sum_by_hand(task, episode, use):
    reward = RewardFunction(
        {"answer": 2.0, "format": 0.5, "calls": 0.25, "length": -0.125}, length_target=20
    )
    call = (Call("price", "{}"),)
    outcome = episode(call, "7", uses=(use(), use(wrong_by_model=True)), tokens=120)
    # answer 1, format 2/2, calls 1/2, length (100 - 60) / (100 - 20)
    found = reward.judge(None, task({"answer": "7"}), outcome)
    assert found.components == {"answer": 1.0, "format": 1.0, "calls": 0.5, "length": 0.5}
    assert found.total == 2.0 + 0.5 + 0.125 - 0.0625 and not found.failed
    wrong = reward.judge(None, task({"answer": "8"}, 1), outcome)
    assert wrong.total == found.total - 2.0


GRADED = {
    "exact": ({"answer": ["7", "seven"]}, "Seven", "8"),
    "pattern": ({"pattern": r"\b7\b"}, "It is 7.", "It is 17."),
    "number": ({"answer": "7", "grader": "number"}, "It costs 7.0", "It costs 6"),
    "maths": ({"answer": r"\frac{1}{2}", "grader": "maths"}, "0.5", "0.6"),
    "choice": ({"answer": "B", "grader": "choice", "choices": ["x", "y"]}, "B", "A"),
    "json_schema": (
        {"grader": "json_schema", "schema": {"type": "object", "required": ["a"]}},
        '{"a": 1}',
        '{"b": 1}',
    ),
    "rules": ({"grader": "rules", "rules": [{"rule": "words", "at_most": 2}]}, "a b", "a b c"),
    "policy": (
        {"answer": "1", "policy": "x", "grader": {"kind": "policy", "labels": ["0", "1"]}},
        "1",
        "0",
    ),
}


@pytest.mark.parametrize("kind", GRADED)
def test_answers_by_every_grader_of_texts(kind, task, episode):
    row, right, wrong = GRADED[kind]
    reward = RewardFunction({"answer": 1.0})
    asked = [(None, task(row), episode(text)) for text in (right, wrong)]
    judged = reward.judge_many([*asked, (None, task(row), episode(None, ended="length"))])
    assert [found.components["answer"] for found in judged] == [1.0, 0.0, 0.0]
    assert not any(found.failed for found in judged)


def test_calls_of_several_turns_are_judged_together(task, episode):
    # harmony stops at each call, so the expected ones come one a turn, code for python among them
    row = {
        "grader": "calls",
        "calls": [{"name": "price", "arguments": {"item": "pear"}}, {"name": "python"}],
    }
    one, other = (Call("price", '{"item": "pear"}'),), (Call("python", "print(6 * 7)"),)
    reward = RewardFunction({"answer": 1.0})
    episodes = [[one, other, "42"], [other, one, "42"], [one, "42"], [one, one, other, "42"]]
    judged = reward.judge_many([(None, task(row), episode(*said)) for said in episodes])
    assert [found.total for found in judged] == [1.0, 1.0, 0.0, 0.0]


def test_code_in_the_thoughts_and_in_calls_is_no_answer(task):
    row = {"answer": "42"}
    reward = RewardFunction({"answer": 1.0})
    code = (Call("python", "print(42)"),)
    from gptoss_tune.environments.environment import Outcome

    hidden = Given(None, code, "It is 42")
    outcome = Outcome(row, hidden, (hidden,), (), "turns", longest=100)
    assert reward.judge(None, task(row), outcome).total == 0.0


def test_a_number_of_an_own_class_is_a_component(task, episode):
    reward = RewardFunction({"environment": 3.0, "format": 1.0}, own=True)
    found = reward.judge(Own(0.5), task({}), episode("7"))
    assert found.components == {"environment": 0.5, "format": 1.0} and found.total == 2.5


def test_what_has_no_weight_is_told_and_weighs_nothing(task, episode):
    reward = RewardFunction({"taste": 1.0, "size": 0.0}, own=True)
    found = reward.judge(Own({"taste": 2, "size": 5, "smell": 7.0}), task({}), episode("7"))
    assert found.components == {"taste": 2.0, "size": 5.0, "smell": 7.0} and found.total == 2.0


def test_an_own_answer_takes_the_place_of_the_rows_grader(task, episode):
    reward = RewardFunction({"answer": 1.0}, own=True)
    reward.check([task({"answer": "7"}), task({}, 1)])
    own = Own(lambda outcome: {"answer": float(outcome.final == "8")})
    assert reward.judge(own, task({"answer": "7"}), episode("8")).total == 1.0
    assert reward.judge(Own({"taste": 1}), task({"answer": "7"}), episode("7")).total == 1.0


def _tensor_like():
    class Scalar:
        def __float__(self):
            return 0.25

    return Scalar()


@pytest.mark.parametrize("value", [True, 1, 0.25, _tensor_like()])
def test_numbers_of_any_kind(value, task, episode):
    reward = RewardFunction({"environment": 1.0}, own=True)
    found = reward.judge(Own(value), task({}), episode("7"))
    assert found.total == float(value) and not found.failed


NO_NUMBERS = {
    "not a number": math.nan,
    "infinite": -math.inf,
    "too large": LARGEST * 2,
    "text": "1.0",
    "nothing": None,
    "a list": [1.0],
    "a whole number beyond floats": 10**400,
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_is_no_finite_number_fails_alone(name, task, episode):
    reward = RewardFunction({"environment": 1.0, "format": 0.5}, own=True)
    found = reward.judge(Own(NO_NUMBERS[name]), task({}), episode("7"))
    assert found.total == 0.5 and found.components["environment"] == 0.0
    assert list(found.failed) == ["environment"]
    assert "expected a finite number" in found.failed["environment"]


def test_one_component_of_several_fails_alone(task, episode):
    reward = RewardFunction({"a": 1.0, "b": 1.0, "answer": 1.0}, own=True)
    found = reward.judge(Own({"a": math.nan, "b": 4}), task({"answer": "7"}), episode("7"))
    assert found.total == 5.0 and list(found.failed) == ["a"]
    assert found.components == {"a": 0.0, "b": 4.0, "answer": 1.0}


def test_an_exception_as_a_value_fails_alone(task, episode):
    found = RewardFunction({"a": 1.0, "b": 1.0}, own=True).judge(
        Own({"a": ValueError("no price"), "b": 4}), task({}), episode("7")
    )
    assert found.total == 4.0 and found.failed == {"a": "ValueError: no price"}


@pytest.mark.parametrize(
    "error", [ValueError("no\nprice"), SystemExit(3), KeyboardInterrupt(), RecursionError()]
)
def test_a_reward_that_raises_is_counted_and_costs_nothing_else(error, task, episode):
    reward = RewardFunction({"a": 1.0, "b": 1.0, "answer": 1.0}, own=True)
    asked = [
        (Own(error if number == 2 else {"a": 1, "b": 1}), task({"answer": "7"}), episode("7"))
        for number in range(4)
    ]
    judged = reward.judge_many(asked)
    assert [found.total for found in judged] == [3.0, 3.0, 1.0, 3.0]
    assert [len(found.failed) for found in judged] == [0, 0, 1, 0]
    said = judged[2].failed["environment"]
    assert said.startswith(type(error).__name__) and "test_reward.py:" in said and "\n" not in said
    assert judged[2].components == {"a": 0.0, "b": 0.0, "answer": 1.0}


def test_a_component_that_is_left_out_once_is_counted(task, episode):
    reward = RewardFunction({"a": 1.0, "b": 1.0}, own=True)
    judged = reward.judge_many(
        [(Own(gives), task({}), episode("7")) for gives in ({"a": 1, "b": 1}, {"a": 1})]
    )
    assert [found.total for found in judged] == [2.0, 1.0]
    assert judged[1].failed == {"b": "reward() did not give it"}


class Unfriendly:
    """A number, or a mapping, that raises whatever is asked of it."""

    def __init__(self, error):
        self.error = error

    def __float__(self):
        raise self.error


class UnfriendlyMapping(Mapping):
    """Components that raise when they are read."""

    def __getitem__(self, name):
        raise ZeroDivisionError("no prices")

    def __iter__(self):
        return iter(("a",))

    def __len__(self):
        return 1


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("x"), AssertionError()])
def test_a_number_that_raises_when_it_is_read_fails_alone(error, task, episode):
    reward = RewardFunction({"a": 1.0, "b": 1.0}, own=True)
    found = reward.judge(Own({"a": Unfriendly(error), "b": 2}), task({}), episode("7"))
    assert found.total == 2.0 and list(found.failed) == ["a"]
    assert type(error).__name__ in found.failed["a"]


@pytest.mark.parametrize("gives", [UnfriendlyMapping(), Unfriendly(SystemExit(3))])
def test_what_raises_as_a_whole_when_it_is_read_is_a_failed_reward(gives, task, episode):
    reward = RewardFunction({"a": 1.0, "format": 1.0}, own=True)
    found = reward.judge(Own(gives), task({}), episode("7"))
    assert found.total == 1.0 and list(found.failed) == ["environment"]
    assert found.components["a"] == 0.0


def test_numbers_that_are_awaited_are_read_too(task, episode):
    async def later(outcome):
        return {"a": Unfriendly(ZeroDivisionError()), "b": 2}

    found = RewardFunction({"a": 1.0, "b": 1.0}, own=True).judge(Own(later), task({}), episode("7"))
    assert found.total == 2.0 and list(found.failed) == ["a"]


def test_a_component_of_some_episodes_ends_no_run(task, episode):
    """Which episode comes first, and on which rank, says nothing of the class."""
    reward = RewardFunction({"tests": 1.0, "format": 1.0}, own=True)
    found = [
        reward.judge(Own(gives), task({}), episode("7"))
        for gives in (ValueError(), {"taste": 1.0}, {"tests": 2})
    ]
    assert [one.total for one in found] == [1.0, 1.0, 3.0]
    assert found[1].failed == {"tests": "reward() did not give it"}


def test_components_that_a_class_names_are_known_before_anything_is_played(task):
    class Named(Own):
        components = ("taste", "answer")

    RewardFunction({"taste": 1.0, "answer": 1.0}, own=True).check([task({})], Named(1.0))
    with pytest.raises(RecipeError, match=r"rewards\.tast: .*did you mean taste\?"):
        RewardFunction({"tast": 1.0}, own=True).check([task({})], Named(1.0))


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        ({"std": 1.0, "a": 1.0}, "reward_std is the metric of another figure"),
        ({"a b": 1.0, "a": 1.0}, "1 to 64 letters"),
        ({3: 1.0, "a": 1.0}, "1 to 64 letters"),
    ],
)
def test_names_that_cannot_be_metrics(gives, said, task, episode):
    found = RewardFunction({"a": 1.0}, own=True).judge(Own(gives), task({}), episode("7"))
    assert found.total == 1.0 and said in found.failed["environment"]


def test_a_flood_of_components_is_refused(task, episode):
    reward = RewardFunction({"c1": 1.0, "format": 1.0}, own=True)
    found = reward.judge(Own({f"c{n}": 1 for n in range(1000)}), task({}), episode("7"))
    assert found.total == 1.0 and "1,000 components" in found.failed["environment"]


def test_rows_that_cannot_be_graded_are_all_named_before_anything_is_played(task):
    rows = [{"answer": "7"}, {}, {"answer": "x", "grader": "nubmer"}, {"answer": ""}]
    tasks = [task(row, number) for number, row in enumerate(rows)]
    with pytest.raises(DataError) as raised:
        RewardFunction({"answer": 1.0}).check(tasks)
    lines = str(raised.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"data/x.jsonl:{n}" for n in (2, 3, 4)]
    assert "the row has neither answer, pattern nor grader" in lines[0]
    RewardFunction({"format": 1.0}).check(tasks)


def test_a_row_without_a_grader_fails_where_an_own_class_judges_not(task, episode):
    reward = RewardFunction({"answer": 1.0, "a": 1.0}, own=True)
    reward.check([task({})])
    found = reward.judge(Own({"a": 1.0}), task({}), episode("7"))
    assert found.total == 1.0 and "neither answer" in found.failed["answer"]


def test_a_row_that_the_environment_changes_is_graded_as_it_was(task, episode):
    one = task({"answer": "7", "list": [1]})
    reward = RewardFunction({"answer": 1.0})
    reward.check([one])
    one.row["answer"] = "8"
    assert reward.judge(None, one, episode("7")).total == 1.0


def test_a_verdict_that_was_given_up_is_a_failure(task, episode):
    row = {"pattern": "(a+)+(a+)+(a+)+$b?c"}
    found = RewardFunction({"answer": 1.0}).judge(None, task(row), episode("a" * 4000 + "!"))
    assert found.total == 0.0 and found.failed["answer"].startswith("not judged: ")


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(RecipeError, match=r"method\.rewards\.answer: got nan, expected a finite"):
        RewardFunction({"answer": math.nan})


def test_a_reason_is_one_line_and_short():
    class Unspeakable(Exception):
        def __str__(self):
            raise ValueError

    assert reason(Unspeakable()) == "Unspeakable: it cannot be shown"
    assert reason(ValueError("a\n\x1b[2J" + "b" * 1000)).startswith("ValueError: a\\n\\x1b[2J")
    assert len(reason(ValueError("b" * 1000))) == 300
