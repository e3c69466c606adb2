"""One process at a time trains in a folder, however the one before it ended."""

import os
import signal
import subprocess
import sys

import pytest

from gptoss_tune.errors import MachineError
from gptoss_tune.run.folder import LOCK
from gptoss_tune.run.lock import FolderLock
from gptoss_tune.train.run import train

HOLD = """
import os, sys, time
from pathlib import Path
from gptoss_tune.run.lock import FolderLock
with FolderLock() as lock:
    assert lock.take(Path(sys.argv[1])) == ()
    if os.fork() == 0:
        # A worker, which outlives its parent: it speaks, since a parent killed before its child
        # runs at all leaves a copy of the lock that nobody has closed yet.
        print("held", flush=True)
        time.sleep(600)
    sys.stdin.readline()
"""

TAKE = """
import sys
from pathlib import Path
from gptoss_tune.errors import MachineError
from gptoss_tune.run.lock import FolderLock
try:
    FolderLock().take(Path(sys.argv[1]))
except MachineError as error:
    print(error)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process, with a forked worker, that holds the lock on a run's folder."""
    run = tmp_path / "run"
    run.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process, run
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_folder_in_which_another_process_trains_is_refused_by_its_number(holder, recipe):
    process, run = holder
    with pytest.raises(MachineError, match=f"process {process.pid} on .* is training in .*run;"):
        train(recipe())
    assert [path.name for path in run.iterdir()] == [LOCK]
    with FolderLock() as lock, pytest.raises(MachineError, match=f"process {process.pid} on"):
        lock.take(run)  # being refused has not given the other's lock away


def test_a_lock_ends_with_a_kill_though_a_worker_lives_on(holder):
    process, run = holder
    process.kill()
    process.wait()
    with FolderLock() as lock:
        assert lock.take(run) == ()
        assert (run / LOCK).read_text().strip().startswith(f"process {os.getpid()} on")
    assert not (run / LOCK).exists()


def test_a_lock_that_leaves_takes_its_file_along_and_the_next_one_is_seen(holder):
    process, run = holder
    process.stdin.write("\n")
    process.stdin.flush()
    process.wait()
    assert list(run.iterdir()) == []
    with FolderLock() as lock:
        lock.take(run)
        other = subprocess.run([sys.executable, "-c", TAKE, run], capture_output=True, text=True)
    refused = other.stdout
    assert f"process {os.getpid()} on" in refused
