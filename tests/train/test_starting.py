"""SIGTERM before the run began is a run to start again, not a failed one."""

import os
import signal
import subprocess
import sys

import pytest

from gptoss_tune.train.starting import starting

IN_AN_IMPORT = """
import os, signal
from gptoss_tune.train.starting import starting
with starting():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:
        pass  # what some imports do
    print("still here")
"""


def test_sigterm_while_importing_ends_as_resumable():
    ended = subprocess.run([sys.executable, "-c", IN_AN_IMPORT], capture_output=True, text=True)
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
