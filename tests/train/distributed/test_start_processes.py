"""The processes of a run as ``gptoss-tune train`` starts them: arguments, signals, exit codes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from gptoss_tune.recipe.schema import DistributedSection
from gptoss_tune.train.distributed import start_processes
from gptoss_tune.train.distributed.start_processes import (
    _Launch,
    accelerate_arguments,
    threads_of_a_process,
)


@pytest.mark.parametrize("strategy", [None, "ddp", "fsdp2"])
def test_the_strategy_chooses_the_shipped_configuration(strategy):
    section = DistributedSection(num_processes=4, strategy=strategy)
    words = accelerate_arguments(["a.yaml", "train.seed=1"], section, ["steps"])
    config = words[words.index("--config_file") + 1]
    assert config.endswith(f"accelerate/{strategy or 'ddp'}.yaml") and os.path.isfile(config)
    assert words[words.index("--num_processes") + 1] == "4"
    ours = words[words.index("gptoss_tune.train") + 1 :]
    assert ours == ["a.yaml", "train.seed=1", "--allow-change", "steps"]


def test_threads_are_one_on_a_cpu_and_a_share_of_the_cores_beside_gpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert threads_of_a_process(8, gpus=0) == 1
    assert threads_of_a_process(16, gpus=16) == 4
    assert threads_of_a_process(2, gpus=2) == start_processes.MOST_THREADS
    assert threads_of_a_process(128, gpus=128) == 1


@pytest.mark.parametrize(
    ("codes", "signals", "code", "said"),
    [
        ({1: 2, 0: 75}, [], 2, ""),
        ({1: 75, 0: -15}, [signal.SIGTERM], 75, ""),
        ({1: -9, 0: 75}, [], 75, ""),  # rank 0 has said who was killed
        ({1: -9, 0: -15}, [], 75, "rank 1 was killed by SIGKILL, as by a system that is out of"),
        ({1: -15, 0: -15}, [signal.SIGTERM], 75, "a signal came before the run began"),
        ({1: -9, 0: -9}, [signal.SIGINT] * 2, 130, "stopped by Ctrl-C"),
    ],
)
def test_the_exit_code_is_that_of_the_process_that_failed_first(codes, signals, code, said, capsys):
    launch = _Launch(lambda: None)
    launch._signals = signals
    assert launch._ended(codes, 1) == code
    assert (said in capsys.readouterr().err) if said else not capsys.readouterr().err


def test_a_signal_reaches_each_process_once(monkeypatch):
    class Process:
        def __init__(self, pid):
            self.pid, self.got = pid, []

        def send_signal(self, number):
            self.got.append(number)

    there = [Process(1)]
    monkeypatch.setattr(start_processes, "_children", lambda: there)
    launch = _Launch(lambda: None)
    launch._pass_on()
    launch._take(signal.SIGTERM, None)
    launch._pass_on()
    there.append(Process(2))  # started after the signal
    launch._take(signal.SIGTERM, None)
    launch._pass_on()
    assert [process.got for process in there] == [[signal.SIGTERM], [signal.SIGTERM]]


@pytest.mark.slow
def test_train_starts_the_processes_and_a_signal_ends_them_with_75(recipe_file, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "gptoss_tune", "train", str(recipe_file)]
    command += ["distributed.num_processes=2", "train.max_steps=500"]
    command += ["train.per_device_train_batch_size=1"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "stopped" and record["environment"]["processes"] == 2
    heard, line = errors.split("\n", 1)[1].splitlines()
    assert heard.startswith("SIGTERM: stopping after this step")
    assert line.startswith(f"stopped: a signal ended the run after step {record['steps']} of 500")


@pytest.mark.slow
def test_a_mistake_of_the_ranks_is_one_message_and_their_exit_code(recipe_file, rows, tmp_path):
    late = tmp_path / "late.jsonl"
    late.write_text(rows.read_text() + '{"nothing": 1}\n')  # past the rows that are read before
    command = [sys.executable, "-m", "gptoss_tune", "train", str(recipe_file)]
    command += ["distributed.num_processes=2", f"data.train={late}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("no known columns") == 1
    for page in ("Traceback", "ChildFailedError", "CalledProcessError", "torch.distributed"):
        assert page not in done.stderr
