"""Many judgements beside a waiting model: each once, and a judge that dies costs its own."""

import time

import pytest

from gptoss_tune.recipe import JudgeSection
from gptoss_tune.safety.agreement import agreement
from gptoss_tune.safety.judge import Judge
from gptoss_tune.safety.judging import GIVEN_UP_AFTER, Exchange, Judging
from gptoss_tune.safety.policy import load_policy


@pytest.fixture
def judging(stub):
    section = JudgeSection.model_validate({"url": stub.url, "retries": 0, "parallel": 3})
    return Judging(Judge(section, load_policy(None), lambda seconds: None))


def finish(judging, exchanges):
    judging.start(exchanges)
    until = time.monotonic() + 20
    while not judging.finished:
        assert time.monotonic() < until
        time.sleep(0.005)
    return [judging.judgement(exchange) for exchange in exchanges]


def test_every_exchange_is_judged_once_a_run(judging, stub, as_chat, parts_of):
    stub.reply = lambda body: (200, as_chat("1" if parts_of(body)[1] == "bad 3" else "0"))
    exchanges = [Exchange("q", f"bad {n}") for n in range(8)]
    found = finish(judging, [*exchanges, exchanges[3]])
    assert [one.label for one in found] == [0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert len(stub.asked) == 8
    assert finish(judging, exchanges[3:4])[0].label == 1 and len(stub.asked) == 8


def test_a_judge_that_dies_in_the_middle_is_given_up(judging, stub, as_chat):
    stub.reply = lambda body: (200, as_chat("0")) if len(stub.asked) <= 5 else (500, b"")
    exchanges = [Exchange("q", str(n)) for n in range(40)]
    found = finish(judging, exchanges)
    outcomes = [one.outcome for one in found]
    assert outcomes.count("label") == 5 and outcomes.count("not judged") == 35
    # Two more may be under way when it is given up, and as many may still have had an answer.
    assert len(stub.asked) <= 5 + GIVEN_UP_AFTER + 4
    assert {one.said for one in found if one.label is None} <= {
        "HTTP 500",
        "the judge had stopped answering",
    }
    # It is asked again the next time, and only for what it left.
    judging.forget_failures()
    asked = len(stub.asked)
    stub.reply = lambda body: (200, as_chat("0"))
    assert [one.label for one in finish(judging, exchanges)] == [0] * 40
    assert len(stub.asked) == asked + 35


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_live_judge_that_refuses_some_exchanges_judges_the_rest(
    judging, stub, as_chat, parts_of, status
):
    def reply(body):
        long = parts_of(body)[1].startswith("long")
        return (status, b'{"error": "too long"}') if long else (200, as_chat("1"))

    stub.reply = reply
    exchanges = [Exchange("q", f"long {n}") for n in range(2 * GIVEN_UP_AFTER)]
    exchanges += [Exchange("q", f"bad {n}") for n in range(20)]
    found = finish(judging, exchanges)
    assert [one.label for one in found] == [None] * 2 * GIVEN_UP_AFTER + [1] * 20
    assert all(one.said.startswith(f"HTTP {status}") for one in found if one.label is None)


@pytest.mark.parametrize("status", [302, 401, 403, 404, 429, 500, 503])
def test_a_judge_that_serves_nobody_is_given_up(judging, stub, status):
    stub.reply = lambda body: (status, b"")
    finish(judging, [Exchange("q", str(n)) for n in range(40)])
    assert len(stub.asked) <= GIVEN_UP_AFTER + 3


def test_what_is_stopped_asks_nothing_further(judging, stub, as_chat):
    def reply(body):
        judging.stop()
        return 200, as_chat("0")

    stub.reply = reply
    found = finish(judging, [Exchange("q", str(n)) for n in range(40)])
    assert len(stub.asked) <= 3 and sum(one.label == 0 for one in found) <= 3


def test_agreement_and_kappa_as_worked_by_hand():
    # 4 both 1, 3 both 0, 2 the first alone, 1 the second alone; and three that lack a label.
    first = [1, 1, 1, 1, 0, 0, 0, 1, 1, 0, None, 1, None]
    second = [1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, None, None]
    found = agreement(first, second)
    assert (found.both, found.equal, found.one_alone) == (10, 7, 2)
    # By chance: ones 6/10 and 5/10, so 0.6*0.5 + 0.4*0.5 = 0.5; (0.7 - 0.5) / (1 - 0.5) = 0.4.
    assert found.share == 0.7 and found.kappa == pytest.approx(0.4)
    assert found.disagreements == (7, 8, 9)


@pytest.mark.parametrize(
    ("first", "second", "kappa"),
    [
        ([1, 0, 1, 0], [0, 1, 0, 1], -1.0),
        ([1, 0, 1, 0], [1, 0, 1, 0], 1.0),
        ([0, 0, 0], [0, 0, 0], None),
        ([None], [1], None),
    ],
)
def test_kappa_at_its_ends(first, second, kappa):
    assert agreement(first, second).kappa == kappa
