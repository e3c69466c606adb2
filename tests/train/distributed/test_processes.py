"""Runs as users start them: other processes, signals, exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.distributed.heartbeat import is_running
from gptoss_tune.train.entrypoint import quiet_libraries
from gptoss_tune.train.run import train

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def torchrun(processes, *arguments):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return [sys.executable, *launcher, *address, "-m", "gptoss_tune.train", *map(str, arguments)]


def run(command, **options):
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, **options
    )


@pytest.mark.slow
def test_two_processes_give_the_losses_and_weights_of_one(recipe_file, losses, tmp_path):
    """Each step sees the same rows; the ranks' shares hold different numbers of trained tokens."""
    common = ["train.max_steps=3", "train.gradient_accumulation_steps=2"]
    whole = [f"train.output_dir={tmp_path / 'one'}", "train.per_device_train_batch_size=2"]
    shares = [f"train.output_dir={tmp_path / 'two'}", "train.per_device_train_batch_size=1"]
    train(load_recipe(recipe_file, [*common, *whole]))
    two = run(torchrun(2, recipe_file, *common, *shares))
    assert two.returncode == 0, two.stderr
    expected, actual = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert actual.keys() == expected.keys() == {1, 2, 3}
    for step, loss in expected.items():
        assert actual[step] == pytest.approx(loss, rel=2e-5)
    ours = load_file(tmp_path / "two" / "adapter" / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "one" / "adapter" / "adapter_model.safetensors")
    for name, tensor in theirs.items():
        # Adam divides by the gradient's size, so fp32 noise in it shows at this order.
        torch.testing.assert_close(ours[name], tensor, rtol=2e-3, atol=2e-4)
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["environment"]["processes"] == 2


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on_exactly(
    recipe_file, forked_python, losses, tmp_path
):
    steps = "train.max_steps=12"
    whole = tmp_path / "whole"
    train(load_recipe(recipe_file, [steps, f"train.output_dir={whole}"]))
    stopped = tmp_path / "stopped"
    command = [sys.executable, "-m", "gptoss_tune.train", str(recipe_file), steps]
    command.append(f"train.output_dir={stopped}")
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = stopped / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "is complete, the same command continues from it" in errors
    assert "Traceback" not in errors
    done = len(losses(stopped))
    assert 1 <= done < 12
    assert [p.name for p in stopped.glob("checkpoint-*")] == [f"checkpoint-{done}"]
    assert ">stopped</span>" in (stopped / "report.html").read_text(encoding="utf-8")
    assert forked_python(command[1:]).returncode == 0
    assert losses(stopped) == losses(whole)


def children(pid):
    return [int(word) for word in open(f"/proc/{pid}/task/{pid}/children").read().split()]


def goes_on(recipe_file, overrides, log):
    """What each rank of a continuation does, as the command would start it."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    quiet_libraries()
    train(load_recipe(recipe_file, overrides), allow_change=["steps"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the ranks are found through /proc")
def test_sigterm_to_accelerate_saves_and_another_micro_batch_goes_on(
    recipe_file, on_ranks, losses, tmp_path
):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    launch += ["--multi_gpu", "--main_process_port", "0", "-m", "gptoss_tune.train"]
    batch = ["train.per_device_train_batch_size=1", "train.gradient_accumulation_steps=2"]
    # The launcher kills what has not ended after half a minute; a busy machine may need more.
    launcher = subprocess.Popen(
        [*launch, str(recipe_file), "train.max_steps=500", *batch],
        env={**ENVIRONMENT, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = tmp_path / "run"
    metrics = run / "metrics.jsonl"
    while launcher.poll() is None and not (metrics.exists() and metrics.read_text().count("\n")):
        time.sleep(0.02)
    ranks = children(launcher.pid)
    launcher.send_signal(signal.SIGTERM)
    _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 1, "accelerate's own, whatever the ranks say"
    assert len(ranks) == 2 and not any(map(is_running, ranks))
    done = len(losses(run))
    said = f"stopped: a signal ended the run after step {done} of 500; {run}/checkpoint-{done} is"
    assert errors.count(said) == 1, errors
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("stopped", done)
    assert [path.name for path in run.glob("checkpoint-*")] == [f"checkpoint-{done}"]

    log = tmp_path / "log"
    steps = f"train.max_steps={done + 1}"
    overrides = [steps, "train.per_device_train_batch_size=2"]
    assert on_ranks(2, goes_on, recipe_file, overrides, log) == [0, 0]
    assert len(losses(run)) == done + 1
    assert "Warning" not in log.read_text(), "of the micro-batch, which is a supported change"


@pytest.mark.slow
def test_accelerate_launch_trains_and_a_mistake_ends_in_one_line(recipe_file, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += ["recipes/accelerate/cpu.yaml", "-m", "gptoss_tune.train", str(recipe_file)]
    good = run([*launch, "train.max_steps=1"])
    assert good.returncode == 0, good.stderr
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert "experts MXFP4" in good.stdout
    plain = [sys.executable, "-m", "gptoss_tune.train", str(recipe_file)]
    bad = run([*plain, "train.max_steps=some"])
    assert bad.returncode == 2
    assert "train.max_steps" in bad.stderr and "Traceback" not in bad.stderr
