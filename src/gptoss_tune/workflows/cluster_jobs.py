"""The texts of job files: one shell function that runs a node, and what Slurm or SkyPilot wants.

The function is where a preemption becomes a checkpoint. Slurm gives the signal to the task alone,
which is a shell; accelerate, given it, would end its ranks after 30 seconds and always leaves with
exit code 1. So the shell passes the signal to the ranks, which save and leave, and answers itself
with 75. Every word that comes from a recipe or a command line is quoted; a job's name, which stands
in comments, is reduced to letters, digits, dots, dashes and underscores.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from gptoss_tune.errors import RecipeError

SAVING_SECONDS = 120
"""Time between the signal and the end of a job, for the step at hand and its checkpoint."""
_RUNS = "/gptoss-runs"
_SHIPPED = ("ddp", "fsdp2", "one_gpu", "cpu")
_DIRECTIVE = re.compile(r"[a-z][a-z-]*(=[\w.,:@%/+-]+)?")
_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d\d?(:\d\d){0,2}")
_BUCKET = re.compile(r"(s3|gs|r2|cos|nebius|https)://[\w./-]+")
_GPU = re.compile(r"[\w-]+")

# Where a signal goes to every process, accelerate gets it too and should let its ranks finish.
# A job starts in a folder of data and runs; a yaml.py among them is no module of ours.
_SAFE_PATH = "export PYTHONSAFEPATH=1"

_PATIENCE = f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SAVING_SECONDS - 10}"

RUN_NODE = r"""run_node() {
  local launcher code signalled=
  # To the ranks, which save and leave; accelerate would end them after 30 seconds.
  trap 'signalled=1; pkill -TERM -P "$launcher"' TERM
  "$@" &
  launcher=$!
  wait "$launcher"; code=$?
  while kill -0 "$launcher" 2>/dev/null; do wait "$launcher"; code=$?; done
  # Accelerate's own code is always 1.
  if [ "$code" -ne 0 ] && [ -n "$signalled" ]; then code=75; fi
  return "$code"
}"""


@dataclass(frozen=True)
class Job:
    """What is run, whoever starts it.

    Attributes:
        name: Of the job, from ``job_name``.
        recipe: The recipe's file.
        overrides: Laid over it, with ``distributed.num_processes`` where the recipe says less.
        nodes: Machines.
        gpus_per_node: Processes on each.
        accelerate: A shipped configuration's name, or a file.
        setup: Shell lines that go before.
    """

    name: str
    recipe: Path
    overrides: tuple[str, ...]
    nodes: int
    gpus_per_node: int
    accelerate: str
    setup: tuple[str, ...]

    @property
    def processes(self) -> int:
        """Processes on all machines."""
        return self.nodes * self.gpus_per_node


def job_name(text: str) -> str:
    """Return ``text`` as a name that no shell, YAML reader or ``#SBATCH`` line reads otherwise."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".-")[:60] or "gptoss-tune"


def slurm_script(job: Job, *, time: str, cpus: int | None, directives: Sequence[str]) -> str:
    """Return a batch script for ``sbatch``.

    Args:
        job: What is run; its paths are those of this machine, on a file system shared by all.
        time: Longest time of one start, as Slurm writes it.
        cpus: Cores of each node; ``None``: 8 for each GPU.
        directives: Further ``KEY=VALUE`` for ``#SBATCH --KEY=VALUE``.

    Raises:
        RecipeError: A time or directive is not one.
    """
    if not _TIME.fullmatch(time):
        raise RecipeError(f"--time: got {time!r}, expected Slurm's form, such as 12:00:00 or 2-0")
    for directive in directives:
        if not _DIRECTIVE.fullmatch(directive):
            raise RecipeError(f"--sbatch: got {directive!r}, expected KEY=VALUE without spaces")
    cores = cpus or 8 * job.gpus_per_node
    lines = [
        f"job-name={job.name}",
        f"nodes={job.nodes}",
        "ntasks-per-node=1",
        f"gpus-per-node={job.gpus_per_node}",
        f"cpus-per-task={cores}",
        f"time={time}",
        f"output={job.name}-%j.log",
        "open-mode=append",
        f"signal=TERM@{SAVING_SECONDS}",
        "requeue",
        *directives,
    ]
    launch = _accelerate(job, rank="$SLURM_NODEID", python=sys.executable)
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{line}" for line in lines),
            "",
            f"# Written by gptoss-tune launch. {SAVING_SECONDS} seconds before the time is over,",
            "# and at a preemption, the ranks get SIGTERM, save a checkpoint and leave with 75;",
            "# the job is then queued again and goes on from there. A job ended by scancel is not.",
            "set -u",
            _SAFE_PATH,
            f"cd -- {shlex.quote(str(Path.cwd()))} || exit 3",
            *job.setup,
            "# scancel signals this shell, a time limit or a preemption only the steps.",
            "cancelled=",
            "trap 'cancelled=1' TERM",
            "export MASTER_ADDR MASTER_PORT",
            _PATIENCE,
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))  # jobs that share a node differ",
            _config_line(job, sys.executable),
            "",
            RUN_NODE,
            "train() {",
            "  run_node " + launch,
            "}",
            "",
            "# One shell on each node; the first node holds rank 0. A node that fails is not",
            "# allowed to signal the others, which would take it for a preemption.",
            f"srun --nodes={job.nodes} --ntasks-per-node=1 --cpus-per-task={cores} \\",
            "  --kill-on-bad-exit=0 --export=ALL \\",
            '  bash -c "$(declare -f run_node train); train"',
            "code=$?",
            'if [ "$code" -eq 75 ] && [ -z "$cancelled" ]; then',
            '  scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            'exit "$code"',
            "",
        ]
    )


def skypilot_task(job: Job, *, gpu: str, bucket: str | None, spot: bool, output_dir: str) -> str:
    """Return a SkyPilot task for ``sky jobs launch``; the current folder is its working folder.

    Args:
        job: What is run; its recipe is a path below the current folder.
        gpu: SkyPilot's name of the GPU.
        bucket: Where the run's folder lies, so that a recovered job finds it.
        spot: On spot machines.
        output_dir: The recipe's; with a bucket its last part is the folder there.

    Raises:
        RecipeError: A name or path cannot be used; several machines without a bucket.
    """
    if not _GPU.fullmatch(gpu):
        raise RecipeError(f"--gpu: got {gpu!r}, expected SkyPilot's name of it, such as H100")
    if bucket is not None and not _BUCKET.fullmatch(bucket):
        raise RecipeError(
            f"--bucket: got {bucket!r}, expected a URL such as s3://mine or gs://mine"
        )
    if bucket is None and job.nodes > 1:
        raise RecipeError(
            f"--bucket: {job.nodes} machines have to read the same checkpoints when the job is "
            "started again; name a bucket for the run's folder"
        )
    recipe = _below_here(job.recipe)
    if bucket is not None:
        run = f"{_RUNS}/{job_name(PurePosixPath(output_dir).name)}"
        kept = [word for word in job.overrides if not word.startswith("train.output_dir=")]
        job = replace(job, overrides=(*kept, f"train.output_dir={run}"))
    job = replace(job, recipe=recipe)
    launch = _accelerate(job, rank="$SKYPILOT_NODE_RANK", python="python")
    task: dict[str, Any] = {
        "name": job.name,
        "num_nodes": job.nodes,
        "workdir": ".",
        "resources": {
            "accelerators": f"{gpu}:{job.gpus_per_node}",
            "use_spot": spot,
            "job_recovery": {"recover_on_exit_codes": [75], "max_restarts_on_errors": 0},
        },
    }
    if bucket is not None:
        # Written through a cache: a checkpoint gets its name by renaming its folder.
        task["file_mounts"] = {_RUNS: {"source": bucket, "mode": "MOUNT_CACHED"}}
    task["setup"] = _Block("\n".join((*job.setup, "pip install .")) + "\n")
    run_lines = [
        "set -u",
        _SAFE_PATH,
        *job.setup,
        "export MASTER_ADDR MASTER_PORT=12355",
        _PATIENCE,
        'MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)',
        _config_line(job, "python"),
        RUN_NODE,
        "run_node " + launch,
    ]
    task["run"] = _Block("\n".join(run_lines) + "\n")
    comment = (
        "# Written by gptoss-tune launch, for: sky jobs launch FILE\n"
        "# The ranks answer SIGTERM with a checkpoint and 75, from which the job is recovered; a\n"
        "# machine that is lost without a signal costs the steps since the last checkpoint.\n"
        "# workdir is a checkout of gptoss-tune; elsewhere change `pip install .` below.\n"
    )
    return comment + yaml.dump(task, Dumper=_Dumper, sort_keys=False, width=1000)


class _Block(str):
    """A text that is written as a YAML block, line by line."""


class _Dumper(yaml.SafeDumper):
    """Writes shell lines as they are."""


_Dumper.add_representer(
    _Block,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|"),
)


def _accelerate(job: Job, *, rank: str, python: str) -> str:
    """Return the command of one node, continued over lines of a shell."""
    parts = [
        f"{shlex.quote(python)} -m accelerate.commands.launch --config_file",
        f'"$config" --num_processes {job.processes}',
    ]
    if job.processes > 1:
        # The variables are exported by the job's shell and read on each node.
        parts.append(
            f'--num_machines {job.nodes} --machine_rank "{rank}" --main_process_ip "$MASTER_ADDR"'
        )
        parts.append('--main_process_port "$MASTER_PORT"')
    words = [str(job.recipe), *job.overrides]
    parts.append("-m gptoss_tune.train " + shlex.join(words))
    return f"{parts[0]} " + " \\\n    ".join(parts[1:])


def _config_line(job: Job, python: str) -> str:
    """Return the shell line that sets ``config`` to accelerate's configuration."""
    if job.accelerate not in _SHIPPED:
        if not Path(job.accelerate).is_file():
            raise RecipeError(
                f"--accelerate: {job.accelerate!r} is no file and none of {', '.join(_SHIPPED)}"
            )
        return f"export config={shlex.quote(job.accelerate)}"
    code = "from gptoss_tune.shipped import shipped; print(shipped('recipes') / 'accelerate')"
    command = f"{shlex.quote(python)} -c {shlex.quote(code)}"
    return f"config=$({command})/{job.accelerate}.yaml || exit 3; export config"


def _below_here(recipe: Path) -> Path:
    """Return a recipe's path relative to the current folder, which is what gets uploaded.

    Raises:
        RecipeError: It lies elsewhere.
    """
    try:
        return recipe.resolve().relative_to(Path.cwd().resolve())
    except ValueError:
        raise RecipeError(
            f"{recipe}: SkyPilot uploads the current folder {Path.cwd()}, and the recipe lies "
            "outside it; copy it here"
        ) from None
