"""Who holds up a run: judged by signs alone, with a clock of the test's own."""

import os
import subprocess
import sys

from gptoss_tune.train.distributed.heartbeat import Heartbeat, StallDetector, is_running, this_host

TIMEOUT_S = 120.0


def sign(beat, marks=0, phase="training", **facts):
    facts = {"host": "another machine", "pid": 1, **facts}
    return Heartbeat(beat, marks, phase, marks // 4, "models/layer.py:7 in forward", **facts)


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
    for phase in ("starting", "between steps", "ending"):
        judge = StallDetector(TIMEOUT_S)
        for now in range(0, 7200, 60):
            assert judge.verdict({0: sign(now, 3, phase), 1: sign(now, 9)}, now) is None


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
