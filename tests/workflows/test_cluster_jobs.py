"""Job files: what they hold, and one of them run end to end with a Slurm of two shell scripts."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from gptoss_tune.cli import main
from gptoss_tune.recipe import DistributedSection
from gptoss_tune.train.distributed.start_processes import accelerate_arguments
from gptoss_tune.workflows.cluster.job import job_name

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
HOSTILE = """a b'c"d$(touch owned)`touch owned`;touch owned #%j"""

# Starts one task per node and, as Slurm's cgroup plugin does, lets signals reach the tasks alone.
FAKE_SRUN = """#!/bin/bash
nodes=1
while [ "${1#--}" != "$1" ]; do
  case "$1" in --nodes=*) nodes=${1#--nodes=} ;; esac
  shift
done
for node in $(seq 0 $((nodes - 1))); do
  SLURM_NODEID=$node "$@" &
  pids="${pids-} $!"
done
echo $pids > "$FAKE_SLURM/tasks.part"; mv "$FAKE_SLURM/tasks.part" "$FAKE_SLURM/tasks"
worst=0
for pid in $pids; do
  wait "$pid"; code=$?
  [ "$code" -gt "$worst" ] && worst=$code
done
exit "$worst"
"""
FAKE_SCONTROL = """#!/bin/bash
case "$1 $2" in
  "show hostnames") echo 127.0.0.1 ;;
  "requeue $SLURM_JOB_ID") echo "$2" >> "$FAKE_SLURM/requeued" ;;
esac
"""


def cli(*arguments, cwd):
    command = [sys.executable, "-m", "gptoss_tune", *map(str, arguments)]
    return subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, cwd=cwd
    )


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {name_or_path: openai/gpt-oss-20b}\n"
        "data: {train: rows.jsonl}\n"
        "train: {output_dir: runs/first, max_steps: 4, save_steps: 2}\n",
        encoding="utf-8",
    )
    return path


def bash_reads(script, tmp_path):
    """Return whether bash can parse a script."""
    return subprocess.run(["bash", "-n", script], cwd=tmp_path, check=False).returncode == 0


def test_slurm_script_says_what_a_preemption_needs(recipe_file, tmp_path):
    made = cli(
        "launch", recipe_file, "--slurm", "--nodes", 2, "--sbatch", "partition=gpu", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    script = (tmp_path / "first.sbatch").read_text()
    directives = {line for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --cpus-per-task=64",
        "#SBATCH --signal=TERM@120",
        "#SBATCH --requeue",
        "#SBATCH --partition=gpu",
    } <= directives
    for wanted in (
        "--num_processes 16",
        "--num_machines 2",
        "ddp.yaml",
        "distributed.num_processes=16",
    ):
        assert wanted in script
    assert bash_reads("first.sbatch", tmp_path)
    assert "16 rows per optimizer step" in made.stdout
    again = cli("launch", recipe_file, "--slurm", cwd=tmp_path)
    assert again.returncode == 2 and "not overwritten" in again.stderr


def test_skypilot_task_is_yaml_with_a_shell_that_parses(recipe_file, tmp_path):
    options = ("--skypilot", "--nodes", 2, "--gpus-per-node", 4, "--bucket", "s3://mine", "--spot")
    made = cli("launch", recipe_file, "train.seed=1", *options, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    task = yaml.safe_load((tmp_path / "first.sky.yaml").read_text())
    assert task["num_nodes"] == 2
    resources = task["resources"]
    assert resources["accelerators"] == "H100:4" and resources["use_spot"] is True
    assert resources["job_recovery"]["recover_on_exit_codes"] == [75]
    (mount,) = task["file_mounts"]
    assert f"output_dir: {mount}/first" in task["run"]
    assert "  seed: 1\n" in task["run"] and "--num_processes 8" in task["run"]
    assert str(tmp_path) not in task["run"]
    (tmp_path / "run.sh").write_text(task["run"])
    assert bash_reads("run.sh", tmp_path)


def test_a_recipe_says_itself_how_its_model_is_shared(recipe_file, tmp_path):
    asking = ("distributed.num_processes=8", "distributed.strategy=fsdp2")
    made = cli("launch", recipe_file, "--slurm", *asking, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert ")/fsdp2.yaml || exit 3" in (tmp_path / "first.sbatch").read_text()
    shared = DistributedSection(num_processes=8, strategy="fsdp2")
    command = accelerate_arguments([str(recipe_file), *asking], shared)
    file = Path(command[command.index("--config_file") + 1])
    assert file.name == "fsdp2.yaml" and file.is_file()
    assert "--multi_gpu" not in command and command[-3:] == [str(recipe_file), *asking]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "one of --slurm, --skypilot, --kubernetes, --hf-jobs and --sagemaker"),
        (("distributed.num_processes=4", "--slurm"), "2 x 8 GPUs are 16 processes"),
        (("train.resume=never", "--slurm"), "train.resume=auto"),
        (
            (
                "--slurm",
                "--accelerate",
                "ddp",
                "distributed.num_processes=16",
                "distributed.strategy=fsdp2",
            ),
            "the recipe says distributed.strategy: fsdp2; remove the option, or set "
            "distributed.strategy=ddp",
        ),
        (("--slurm", "--time", "soon"), "--time: got 'soon'"),
        (("--slurm", "--sbatch", "wrap=a b"), "without spaces"),
        (("--slurm", "--accelerate", "zero3"), "'zero3' is no file"),
        (("--skypilot",), "--bucket"),
        (("--skypilot", "--bucket", "mine; ls"), "a URL such as"),
        (("--slurm", "--bucket", "s3://mine", "--spot"), "--bucket, --spot would have no effect"),
        (("--skypilot", "--time", "1:00:00"), "--time would have no effect, it is for --slurm"),
        (("--slurm", "train.max_stepz=1"), "did you mean train.max_steps"),
    ],
)
def test_what_would_fail_in_the_queue_is_refused(
    recipe_file, tmp_path, monkeypatch, capfd, arguments, words
):
    monkeypatch.chdir(tmp_path)
    command = ["gptoss-tune", "launch", str(recipe_file), *arguments, "--nodes", "2"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert words in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_hostile_names_stay_words(tmp_path):
    """Folder, recipe, override and job name that would run a command where they are not quoted."""
    place = tmp_path / HOSTILE.replace("/", "")
    place.mkdir()
    recipe = place / f"{HOSTILE}.yaml"
    recipe.write_text(
        "model: {name_or_path: openai/gpt-oss-20b}\ndata: {train: rows.jsonl}\n"
        "train: {output_dir: runs/first, max_steps: 4}\n"
    )
    fake = tmp_path / "bin"
    fake.mkdir()
    # Each node prints what it was given instead of training.
    (fake / "srun").write_text('#!/bin/bash\nwhile [ "${1#--}" != "$1" ]; do shift; done\n"$@"\n')
    (fake / "scontrol").write_text("#!/bin/bash\necho 127.0.0.1\n")
    for script in fake.iterdir():
        script.chmod(0o755)
    override = f"train.output_dir={HOSTILE}"
    made = cli(
        "launch", recipe.name, override, "--slurm", "--name", HOSTILE, "--out", "job", cwd=place
    )
    assert made.returncode == 0, made.stderr
    script = (place / "job").read_text()
    python = shlex.quote(sys.executable) + " -m accelerate.commands.launch"
    assert python in script
    (place / "job").write_text(script.replace(python, "printf '%s\\n'"))
    environment = {
        **ENVIRONMENT,
        "PATH": f"{fake}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NODELIST": "n",
        "SLURM_NODEID": "0",
    }
    ran = subprocess.run(
        ["bash", "job"], cwd=place, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    words = ran.stdout.splitlines()
    assert words[-3:] == [recipe.name, override, "distributed.num_processes=8"]
    assert not list(tmp_path.rglob("owned"))
    assert job_name(HOSTILE) == "a-b-c-d-touch-owned-touch-owned-touch-owned-j"
    assert job_name("../..") == "gptoss-tune"


@pytest.mark.slow
def test_a_preempted_slurm_job_saves_is_queued_again_and_finishes(tmp_path, tiny_run):
    """Two nodes of one gloo process each: SIGTERM to the tasks -> checkpoint -> 75 -> requeue."""
    recipe, run = tiny_run
    overrides = ["train.max_steps=8", "train.per_device_train_batch_size=1"]
    options = ["--slurm", "--nodes", 2, "--gpus-per-node", 1, "--out", "job"]
    made = cli("launch", recipe, *overrides, *options, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    fake = tmp_path / "bin"
    fake.mkdir()
    for name, text in (("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL)):
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    environment = {
        **ENVIRONMENT,
        "PATH": f"{fake}:{os.environ['PATH']}",
        "FAKE_SLURM": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
    }

    def start():
        return subprocess.Popen(
            ["bash", "job"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    job = start()
    metrics = Path(run) / "metrics.jsonl"
    while job.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.02)
    for pid in (tmp_path / "tasks").read_text().split():
        os.kill(int(pid), signal.SIGTERM)
    log, _ = job.communicate(timeout=120)
    assert job.returncode == 75, log
    assert "is complete, the same command continues from it" in log
    assert (tmp_path / "requeued").read_text().split() == [str(os.getpid())]
    (stopped,) = Path(run).glob("checkpoint-*")
    assert 2 <= int(stopped.name.removeprefix("checkpoint-")) < 8
    job = start()
    log, _ = job.communicate(timeout=240)
    assert job.returncode == 0, log
    logged = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in logged if "loss" in row] == list(range(1, 9))
    assert (Path(run) / "adapter" / "adapter_model.safetensors").exists()
    assert len((tmp_path / "requeued").read_text().split()) == 1
