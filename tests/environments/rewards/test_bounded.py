"""Rewards that hang: each costs its own time, once, and nothing else."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from gptoss_tune.environments.bounded import MOST_LEFT, Bounded, Call, Failure
from gptoss_tune.environments.rewards.reward import RewardFunction

LIMIT = 1.0


class Hangs:
    """An environment whose reward ends when it is let go, if it is to hang at all."""

    def __init__(self, gate, together=None):
        self.gate, self.together, self.calls, self.met = gate, together, 0, False

    def reward(self, outcome):
        self.calls += 1
        if self.together is not None:
            self.together.wait()
            self.met = True
        if self.gate is not None:
            self.gate.wait()
        return 1.0


def _spin():
    while True:
        pass


def _left(bounded, count):
    """Wait until so many calls that were given up still run."""
    until = time.monotonic() + 20
    while bounded.left != count and time.monotonic() < until:
        time.sleep(0.01)
    return bounded.left == count


def test_one_of_eight_hangs_and_costs_its_limit_once(task, episode):
    gate = threading.Event()
    reward = RewardFunction({"environment": 1.0, "format": 0.5}, own=True, seconds=LIMIT)
    worlds = [Hangs(gate if n == 3 else None) for n in range(8)]
    judged = reward.judge_many([(world, task({}), episode("7")) for world in worlds])
    gate.set()
    assert [found.total for found in judged] == [1.5, 1.5, 1.5, 0.5, 1.5, 1.5, 1.5, 1.5]
    assert judged[3].failed == {"environment": "took longer than 1 s"}
    assert judged[3].components == {"environment": 0.0, "format": 1.0}
    assert not any(found.failed for n, found in enumerate(judged) if n != 3)
    assert [world.calls for world in worlds] == [1] * 8


def test_all_that_hang_are_waited_for_together(task, episode):
    gate, together = threading.Event(), threading.Barrier(8)
    reward = RewardFunction({"environment": 1.0}, own=True, seconds=LIMIT)
    worlds = [Hangs(gate, together) for _ in range(8)]
    judged = reward.judge_many([(world, task({}), episode("7")) for world in worlds])
    together.abort()
    gate.set()
    assert all(found.failed for found in judged) and all(world.met for world in worlds)


def test_a_loop_is_ended_and_a_wait_is_left():
    gate, bounded = threading.Event(), Bounded()
    found = bounded.run([Call(_spin, LIMIT), Call(gate.wait, LIMIT), Call(lambda: 7, LIMIT)], 3)
    assert [isinstance(each, Failure) for each in found] == [True, True, False] and found[2] == 7
    assert _left(bounded, 1), "the loop still takes a processor"
    gate.set()
    assert _left(bounded, 0)


def test_a_grader_is_never_interrupted():
    gate, seen = threading.Event(), []

    def waits():
        try:
            while not gate.is_set():
                time.sleep(0.01)
        except BaseException as error:
            seen.append(error)
            raise
        seen.append("ended by itself")

    bounded = Bounded()
    assert isinstance(bounded.run([Call(waits, 0.1, interrupt=False)], 1)[0], Failure)
    time.sleep(0.1)
    gate.set()
    assert _left(bounded, 0) and seen == ["ended by itself"]


def test_a_late_result_is_nobody_elses():
    gate, bounded = threading.Event(), Bounded()

    def late():
        gate.wait()
        return "late"

    def next_one():
        gate.set()
        time.sleep(0.1)
        return "next"

    found = bounded.run([Call(late, 0.1, interrupt=False), Call(next_one, 20)], 1)
    assert isinstance(found[0], Failure) and found[1] == "next"


def test_calls_that_never_end_are_not_made_without_bound():
    gate, bounded = threading.Event(), Bounded()
    bounded.run([Call(gate.wait, 0.05)] * MOST_LEFT, MOST_LEFT)
    assert bounded.left == MOST_LEFT
    found = bounded.run([Call(lambda: 1, 20)] * 2, 1)
    assert found == [Failure(f"not called: {MOST_LEFT} earlier ones still run")] * 2
    gate.set()
    assert _left(bounded, 0)
    assert bounded.run([Call(lambda: 1, 20)], 1) == [1]


def test_awaitables_are_run_to_their_end():
    async def slow(seconds):
        await asyncio.sleep(seconds)
        return 3

    found = Bounded().run([Call(lambda: slow(0.01), 20), Call(lambda: slow(60), LIMIT)], 2)
    assert found[0] == 3 and found[1] == Failure("took longer than 1 s")


def test_whoever_waits_may_end_it():
    class Asked(Exception):
        pass

    def stop():
        raise Asked

    gate = threading.Event()
    with pytest.raises(Asked):
        Bounded().run([Call(gate.wait, 3600)], 1, stop)
    gate.set()


def test_a_reward_that_hangs_does_not_hold_up_the_end_of_the_process():
    code = """
import time
from gptoss_tune.environments.bounded import Bounded, Call
found = Bounded().run([Call(lambda: time.sleep(3600), 0.2)], 1)
print(found[0].reason)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "took longer than 0.2 s"), done.stderr
