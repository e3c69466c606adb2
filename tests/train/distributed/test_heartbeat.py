"""Who holds up a run: judged by signs alone, with a clock of the test's own."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from gptoss_tune.train.distributed.heartbeat import (
    Heartbeat,
    StallDetector,
    is_running,
    stack_of,
    this_host,
)

TIMEOUT_S = 120.0


def sign(beat, marks=0, phase="training", **facts):
    facts = {"host": "another machine", "pid": 1, "place": "models/layer.py:7 in forward", **facts}
    return Heartbeat(beat, marks, phase, marks // 4, **facts)


def test_a_rank_without_a_beat_is_silent_after_the_timeout_and_not_before():
    judge = StallDetector(TIMEOUT_S)
    for now in range(0, 120, 10):
        assert judge.verdict({0: sign(now), 1: sign(5)}, now) is None
    verdict = judge.verdict({0: sign(120), 1: sign(5)}, 120)
    assert verdict is not None and verdict.ranks == (1,)
    assert "rank 1 gave no sign of life for 120 s" in verdict.reason
    assert "layer.py:7" in verdict.reason
    assert verdict.code == 75


def test_a_loop_that_stands_still_is_named_though_its_process_beats():
    judge = StallDetector(TIMEOUT_S)
    for now in range(0, 120, 10):
        assert judge.verdict({0: sign(now, 9), 1: sign(now, 8)}, now) is None
    verdict = judge.verdict({0: sign(120, 9), 1: sign(120, 8)}, 120)
    assert verdict is not None and verdict.ranks == (1,)
    assert "its training loop has hung" in verdict.reason


def test_slow_steps_are_no_hang_while_all_are_slow():
    """A step of ten minutes: one rank is done a little before the other."""
    judge = StallDetector(TIMEOUT_S)
    for now in range(0, 600, 10):
        assert judge.verdict({0: sign(now, 4), 1: sign(now, 4)}, now) is None
    for now in range(600, 660, 10):
        assert judge.verdict({0: sign(now, 5), 1: sign(now, 4)}, now) is None
    assert judge.verdict({0: sign(661, 6), 1: sign(661, 6)}, 661) is None


def test_loading_evaluating_and_saving_may_take_any_time():
    """While one rank does, and moves, the others stand in a collective."""
    for phase in ("starting", "between steps", "ending"):
        judge = StallDetector(TIMEOUT_S)
        for now in range(0, 7200, 60):
            busy = sign(now, 3, phase, moves=now)
            assert judge.verdict({0: busy, 1: sign(now, 9, "between steps")}, now) is None


WRITING, COLLECTIVE = (
    "run/checkpoints.py:275 in _sync",
    "distributed/distributed_c10d.py:1 in barrier",
)
BACKWARD = "autograd/graph.py:829 in _engine_run_backward"


@pytest.mark.parametrize("phase", ["between steps", "ending"])
def test_a_disk_that_hangs_under_one_rank_ends_all(phase):
    judge = StallDetector(TIMEOUT_S)

    def signs(now):
        writer = sign(now, 9, phase, place=WRITING)
        return {0: writer, 1: sign(now, 9, phase, place=COLLECTIVE)}

    for now in range(0, 120, 10):
        assert judge.verdict(signs(now), now) is None
    verdict = judge.verdict(signs(120), 120)
    assert verdict is not None and verdict.ranks == (0,) and verdict.code == 75
    assert "rank 0 has not moved for 120 s while the others wait" in verdict.reason
    assert "checkpoints.py:275 in _sync" in verdict.reason


def test_a_large_file_has_the_time_of_a_slow_disk():
    judge = StallDetector(TIMEOUT_S)
    judge.write_s = 1000.0

    def signs(now):
        writer = sign(now, 9, "between steps", place=WRITING)
        return {0: writer, 1: sign(now, 9, "between steps", place=COLLECTIVE)}

    assert not any(judge.verdict(signs(now), now) for now in range(0, 1120, 10))
    verdict = judge.verdict(signs(1120), 1120)
    assert verdict is not None and "has not moved for 1120 s" in verdict.reason


def test_ranks_that_wait_for_each_other_at_different_places_end():
    """One saves more often: it waits in a barrier, and the other in the next step's backward."""
    judge = StallDetector(TIMEOUT_S)
    for now in range(0, 130, 10):
        signs = {
            0: sign(now, 9, "between steps", place=COLLECTIVE),
            1: sign(now, 11, "training", place=BACKWARD),
        }
        verdict = judge.verdict(signs, now)
        assert (verdict is None) == (now < 120)
    assert verdict.ranks == (0, 1) and "at different places" in verdict.reason


def test_a_standstill_is_none_before_the_first_step_nor_when_the_others_have_ended():
    for others in ({1: sign(0, 1, "starting")}, {1: sign(0, 9, ended=True)}):
        judge = StallDetector(10**6)
        judge.timeout_s = TIMEOUT_S
        for now in range(0, 7200, 100):
            signs = {0: sign(now, 9, "ending")}
            signs |= {rank: replace(one, beat=now) for rank, one in others.items()}
            assert judge.verdict(signs, now) is None


def test_a_thread_that_waits_stands_where_it_stood():
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    before = stack_of(thread.ident)
    assert before and stack_of(thread.ident) == before
    go.set()
    thread.join()
    assert stack_of(thread.ident) == ()
    assert stack_of(threading.get_ident()) != stack_of(threading.get_ident())


def test_a_judge_that_slept_starts_anew():
    judge = StallDetector(TIMEOUT_S)
    assert judge.verdict({1: sign(5)}, 0) is None
    judge.forget()
    assert judge.verdict({1: sign(5)}, 10_000) is None


def test_a_dead_process_of_this_machine_is_named_at_once():
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not buried
    assert not is_running(child.pid)
    here = {"host": this_host()}
    signs = {0: sign(1, pid=os.getpid(), **here), 1: sign(1, pid=child.pid, **here)}
    verdict = StallDetector(TIMEOUT_S).verdict(signs, 0)
    child.wait()
    assert verdict is not None and verdict.ranks == (1,)
    assert not is_running(child.pid)
    assert is_running(os.getpid())


def test_the_reason_and_code_of_a_rank_that_left_are_passed_on():
    left = sign(9, left="the disk is full", code=3, ended=True)
    verdict = StallDetector(TIMEOUT_S).verdict({0: left, 1: sign(9)}, 0)
    assert verdict is not None and verdict.code == 3 and verdict.left
    assert verdict.reason == "rank 0 left the run: the disk is full"
    assert StallDetector(TIMEOUT_S).verdict({0: sign(9, ended=True), 1: sign(9)}, 0) is None
