"""Long contexts: as long as asked for, the fact where it is to be, and the same each time."""

import re

import pytest

from gptoss_tune.benchmark.suites.open import open_suite
from gptoss_tune.errors import DataError
from gptoss_tune.grading.answer import Given

FACT = re.compile(r"The number of the locker of ([A-Z]\w+ [A-Z]\w+) is (\d{6})\.")


@pytest.fixture
def needles(write_suite, renderer):
    return lambda text: open_suite(write_suite(f"needles: {text}\nmax_new_tokens: 64\n"), renderer)


def asked_names(question):
    asked = question.messages[-1]["content"].rpartition("\n\n")[2]
    return re.findall(r"[A-Z]\w+ [A-Z]\w+", asked)


def passes(question, final):
    return question.grader.judge(Given(final), 1.0).passed


def test_lengths_and_depths(needles):
    suite = needles("{lengths: [512, 2048], depths: [0, 0.5, 1]}")
    lengths = [len(q.prompt_ids) for q in suite.questions]
    assert all(472 <= n <= 512 for n in lengths[:3]) and all(2008 <= n <= 2048 for n in lengths[3:])
    for question, depth in zip(suite.questions, [0, 0.5, 1] * 2, strict=True):
        whole = question.messages[-1]["content"]
        text = whole.partition("\n\n")[2].rpartition("\n\n")[0]
        (name,) = asked_names(question)
        at = text.index(f"of the locker of {name} is") / len(text)
        assert abs(at - depth) < 0.12, (depth, at)


def test_only_the_asked_number_is_right(needles):
    for question in needles("{lengths: [1024], distractors: 6}").questions:
        facts = dict(FACT.findall(question.messages[-1]["content"]))
        assert len(facts) == 7
        (name,) = asked_names(question)
        assert passes(question, f"The number is **{facts[name]}**.")
        others = [number for other, number in facts.items() if other != name]
        assert not any(passes(question, number) for number in others)
        assert not passes(question, f"{facts[name]} or {others[0]}") and not passes(question, "")


def test_several_needles_are_asked_for_in_order(needles):
    (question,) = needles("{lengths: [1024], depths: [0.3], needles: 3}").questions
    facts = dict(FACT.findall(question.messages[-1]["content"]))
    numbers = [facts[name] for name in asked_names(question)]
    assert len(numbers) == 3
    assert passes(question, ", ".join(numbers)) and passes(question, "\n".join(numbers))
    assert not passes(question, ", ".join(numbers[::-1])) and not passes(question, numbers[0])


def test_the_same_settings_give_the_same_questions(needles):
    one, two = (needles("{lengths: [512], seed: 5}") for _ in range(2))
    other = needles("{lengths: [512], seed: 6}")
    assert [q.prompt_ids for q in one.questions] == [q.prompt_ids for q in two.questions]
    assert one.questions[0].prompt_ids != other.questions[0].prompt_ids
    # Held against what was written once: it may not change between versions without being noticed.
    (question,) = needles("{lengths: [512], depths: [0.5]}").questions
    assert question.grader.pattern == r"^\D*584538\D*$"


def test_facts_that_do_not_fit_are_refused(needles):
    with pytest.raises(DataError, match="the facts and the question alone have"):
        needles("{lengths: [256], needles: 8, distractors: 16}")
    with pytest.raises(DataError, match="over the 131,072"):
        needles("{lengths: [131072], depths: [0]}")


def test_the_shipped_one_reaches_as_far_as_gpt_oss(renderer):
    suite = open_suite("long-context", renderer)
    lengths = [len(q.prompt_ids) for q in suite.questions]
    assert min(lengths) < 1024 and max(lengths) + suite.asking.max_new_tokens <= 131_072
    assert max(lengths) > 130_000 and {q.effort for q in suite.questions} == {"low"}
