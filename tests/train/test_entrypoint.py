"""SIGTERM before the run began is a run to start again, not a failed one."""

import os
import signal
import subprocess
import sys

import pytest

from gptoss_tune.train.entrypoint import starting

IN_AN_IMPORT = """
import os, signal
from gptoss_tune.train.entrypoint import starting
with starting():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        pass  # what some imports do
    print("still here")
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_while_importing_ends_as_resumable(name):
    code = IN_AN_IMPORT.replace("SIGTERM", name)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (75, "")
    assert "the same command starts it" in ended.stderr


def test_the_signal_is_given_back():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("ours"))
    try:
        with pytest.raises(ValueError, match="inside"), starting():
            raise ValueError("inside")
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == ["ours"]


WHILE_CUDA_STARTS = """
import os, signal, sys
from gptoss_tune.errors import run_command
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train import run
run.refuse_unusable_gpu = lambda: os.kill(os.getpid(), signal.SIGTERM)
run_command(lambda: run.train(load_recipe(sys.argv[1])), debug=False)
"""


@pytest.mark.slow
def test_sigterm_while_the_gpu_is_looked_at_ends_as_resumable(recipe_file, forked_python, tmp_path):
    ended = forked_python(["-c", WHILE_CUDA_STARTS, recipe_file])
    assert ended.returncode == 75 and "the same command starts it" in ended.stderr
    assert not (tmp_path / "run").exists()
