"""A current folder whose files have the names of modules: no process of ours imports them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from gptoss_tune.errors import run_command
from gptoss_tune.recipe.schema import DistributedSection
from gptoss_tune.train.distributed.start_processes import accelerate_arguments
from gptoss_tune.workflows import demo
from gptoss_tune.workflows.cluster.hf_jobs import hf_jobs_script
from gptoss_tune.workflows.cluster.job import Job, Luggage
from gptoss_tune.workflows.cluster.kubernetes import kubernetes_job
from gptoss_tune.workflows.cluster.skypilot import skypilot_task
from gptoss_tune.workflows.cluster.slurm import slurm_script
from gptoss_tune.workflows.reproduce import launch_words, run_again

MODULES = ("yaml", "struct", "multiprocessing", "random", "accelerate", "torch", "typer", "socket")


@pytest.fixture
def hostile(place, canary, monkeypatch):
    """The current folder with modules in it that make the canary, and no safe path yet."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    for name in MODULES:
        code = f"import os; os.makedirs({str(canary)!r}, exist_ok=True)\n"
        Path(f"{name}.py").write_text(code)
    return Path.cwd()


def rendered_by_spawn():
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(os.getpid).result()


STARTS = {
    "a command": lambda: subprocess.run([sys.executable, "-c", "import yaml"], check=True),
    "a module": lambda: subprocess.run([sys.executable, "-m", "calendar"], check=True),
    "rendering": rendered_by_spawn,
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_what_a_command_starts_takes_no_module_from_here(hostile, canary, capfd, start):
    run_command(start, debug=False)
    assert os.environ["PYTHONSAFEPATH"] == "1" and not canary.exists()


def test_the_modules_are_real(hostile, canary):
    """The control: the same start without the variable runs what lies here."""
    subprocess.run([sys.executable, "-c", "import yaml"], check=True)
    assert canary.exists()


def test_demo_starts_its_jobs_safely(hostile, canary):
    demo._run(["-m", "gptoss_tune", "--version"], "gptoss-tune --version", Console(quiet=True))
    assert not canary.exists()


@pytest.mark.slow
def test_reproduce_starts_its_run_safely(hostile, canary, place, capfd):
    run = place / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(
        f"model: {{name_or_path: {place / 'no-base'}}}\n"
        f"data: {{train: {place / 'rows.jsonl'}}}\n"
        f"train: {{output_dir: {place / 'x'}, max_steps: 1, per_device_train_batch_size: 1}}\n"
    )
    record = {"environment": {"processes": 1}, "fingerprint": {}}
    assert run_again(record, run, place / "again") != 0
    said = capfd.readouterr().err
    assert "no-base" in said, "it came as far as the base"
    assert not canary.exists()


def test_every_launch_keeps_the_current_folder_out(monkeypatch):
    record = {"environment": {"processes": 2}, "fingerprint": {}}
    assert launch_words(record, 0)[:2] == launch_words(record, 2)[:2] == [sys.executable, "-P"]
    two = DistributedSection(num_processes=2)
    assert accelerate_arguments(["a.yaml"], two)[-3:] == ["-m", "gptoss_tune.train", "a.yaml"]
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    run_command(lambda: None, debug=False)
    assert os.environ["PYTHONSAFEPATH"] == "1", "which the processes of a run inherit"
    job = Job("x", Path("a.yaml"), (), 1, 1, "one_gpu", ())
    luggage = Luggage("model: {}\n", ("rows.jsonl",), Path("/x"), "gptoss-tune", None, ("T",))
    bucket = "hf://buckets/me/runs"
    scripts = (
        slurm_script(job, time="1:00:00", cpus=None, directives=()),
        skypilot_task(job, luggage, gpu="H100", bucket=None, spot=False),
        hf_jobs_script(job, luggage, flavor=None, bucket=bucket, time="1:00:00"),
        kubernetes_job(job, replace(luggage, image="registry/x:1"), claim="work"),
    )
    for script in scripts:
        before, _, after = script.partition("export PYTHONSAFEPATH=1")
        assert after and sys.executable not in before and "python" not in before.split("run:")[-1]
