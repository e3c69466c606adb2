"""An answerer that is right on exactly k of n questions scores exactly k of n, for every grader."""

import json

import pytest

from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.grading.grader import QUICK, SLOW_SECONDS, Grading, Verdict
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.harmony.conversation import Header, Message

N = 60
CITIES = ["Oslo", "Rome", "Lima", "Cairo"]


def exact(n):
    return {"answer": f"item {n}"}, Given(f"Item {n}."), Given(f"Item {n + 1}.")


def pattern(n):
    return {"pattern": rf"\b{n}\b"}, Given(f"it is {n}"), Given(f"it is {n}{n}")


def number(n):
    row = {"answer": n * 1000 + 0.5, "grader": "number"}
    return row, Given(f"6 times 7 gives **{n * 1000:,}.5**"), Given(f"**{n * 1000 + 1:,}.5**")


def maths(n):
    right = Given(rf"The answer is \(\frac{{{2 * n}x}}{{2}} + {n}\).")
    row = {"answer": rf"{n}(x + 1)" if n else "0", "grader": "maths"}
    return row, right, Given(rf"\boxed{{{n}(x + 2) + 1}}")


def choice(n):
    row = {"answer": CITIES[n % 4], "choices": CITIES, "grader": "choice"}
    wrong = "ABCD"[(n + 1) % 4]
    return row, Given(f"**Answer:** ({'ABCD'[n % 4]})"), Given(f"{wrong}) {CITIES[(n + 1) % 4]}")


def rules(n):
    row = {"rules": [{"rule": "words", "exactly": n + 1}, {"rule": "no_commas"}], "grader": "rules"}
    return row, Given("word " * (n + 1)), Given("word " * (n + 2))


def calls(n):
    row = {"calls": [{"name": "add", "arguments": {"a": n, "b": [n]}}], "grader": "calls"}
    right = Call("add", json.dumps({"b": [float(n)], "a": n}))
    return row, Given(None, (right,)), Given(None, (Call("add", json.dumps({"a": n})),))


def json_schema(n):
    schema = {"type": "object", "properties": {"n": {"maximum": n}}, "required": ["n"]}
    row = {"schema": schema, "grader": "json_schema"}
    return row, Given(json.dumps({"n": n})), Given(json.dumps({"n": n + 1}))


KINDS = (exact, pattern, number, maths, choice, rules, calls, json_schema)


@pytest.mark.parametrize("right", [0, 1, 37, N])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_k_of_n(kind, right):
    judge, passed = Grading(), []
    for n in range(N):
        row, good, bad = kind(n)
        # Which ones are right is scattered, so that a grader stuck on one verdict is seen.
        given = good if n * 7 % N < right else bad
        passed.append(judge.grade(read_grader(row, f"x:{n}"), given)["passed"])
    assert sum(passed) == right
    assert [n * 7 % N < right for n in range(N)] == passed


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_answer_in_the_chain_of_thought_alone_was_not_given(kind):
    row, good, _ = kind(3)
    thought = Given(None, (), analysis=good.final or good.calls[0].arguments)
    assert not Grading().grade(read_grader(row, "x:1"), thought)["passed"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_graders_of_equal_rows_are_equal_and_can_be_keys(kind):
    one, two = (read_grader(kind(5)[0], f"x:{line}") for line in (1, 2))
    assert one == two and hash(one) == hash(two)
    assert one != read_grader(kind(6)[0], "x:3") or kind is choice
    assert one.expected and isinstance(one.expected, str)


@pytest.mark.slow
def test_a_benchmark_of_a_thousand_rows_of_mathematics_is_judged():
    """Twenty answers without end among them do not take the time of the others."""
    judge, grades = Grading(), []
    grader = read_grader({"answer": r"\frac{x}{2}", "grader": "maths"}, "x:1")
    for n in range(1000):
        text = (
            r"\boxed{9^{9^{9^{9}}}}"
            if n % 250 == 7
            else rf"\boxed{{\frac{{{n}x}}{{{2 * n or 1}}}}}"
        )
        grades.append(judge.grade(grader, Given(text)))
    # 0x/1 is 0, four have no end, all others are x/2.
    assert sum(grade["passed"] for grade in grades) == 1000 - 1 - 4
    assert [n for n, g in enumerate(grades) if "not judged" in g.get("note", "")] == [
        7,
        257,
        507,
        757,
    ]


class Slow:
    """A grader that takes the time it is given where the text asks for it."""

    kind, seconds, expected = "maths", 5.0, "x"

    def __init__(self, monkeypatch):
        self.now, self.allowed = 0.0, []
        monkeypatch.setattr("gptoss_tune.grading.grader.time.monotonic", lambda: self.now)

    def judge(self, given, seconds):
        self.allowed.append(seconds)
        self.now += seconds if given.final == "slow" else QUICK / 2
        return Verdict(given.final != "slow")


def test_slow_verdicts_share_a_time_and_quick_ones_cost_nothing(monkeypatch):
    grader, judge = Slow(monkeypatch), Grading()
    for _ in range(5_000):
        assert judge.grade(grader, Given("quick"))["passed"]
    assert set(grader.allowed) == {5.0}
    for _ in range(20):
        judge.grade(grader, Given("slow"))
    assert sum(grader.allowed[5_000:5_012]) == SLOW_SECONDS["maths"]
    assert set(grader.allowed[5_012:]) == {QUICK}
    assert judge.grade(grader, Given("quick"))["passed"]
    # Another kind has a time of its own, and one without a limit in all keeps its own.
    grader.kind = "json_schema"
    judge.grade(grader, Given("slow"))
    grader.kind = "code"
    for _ in range(100):
        judge.grade(grader, Given("slow"))
    assert set(grader.allowed[5_021:]) == {5.0}


def test_the_calls_of_a_conversations_own_answer():
    from gptoss_tune.grading.calls import calls_of

    def call(name, text):
        return Message(Header("assistant", None, name, "commentary", "json"), text)

    thought = Message(Header("assistant", None, None, "analysis"), "I look it up.")
    final = Message(Header("assistant", None, None, "final"), "It rains.")
    result = Message(Header("tool", "functions.forecast", "assistant", "commentary"), "rain")
    asked = call("functions.forecast", '{"city": "Oslo", "days": 3}')
    grader = calls_of(
        [thought, asked, result, call("functions.forecast", '{"city": "Rome"}'), final]
    )
    made = Call("forecast", '{"days": 3.0, "city": "Oslo"}')
    assert grader.judge(Given(None, (made,)), 0).passed
    assert not grader.judge(Given(None, (Call("forecast", '{"city": "Rome"}'),)), 0).passed
    assert not grader.judge(Given("It rains."), 0).passed
    silent = calls_of([thought, final])
    assert silent.judge(Given("It snows."), 0).passed
    assert not silent.judge(Given(None, (made,)), 0).passed
    code = calls_of([Message(Header("assistant", None, "python", "analysis", "code"), "print(1)")])
    assert code.judge(Given(None, (Call("python", "print(2)"),)), 0).passed
