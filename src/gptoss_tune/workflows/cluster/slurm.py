"""A batch script for Slurm, on a file system that every node sees.

Slurm gives the signal to the task alone, which is a shell; it hands it on as ``job.RUN_NODE`` says.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from gptoss_tune.errors import RecipeError
from gptoss_tune.workflows.cluster.job import (
    PATIENCE,
    RUN_NODE,
    SAFE_PATH,
    SAVING_SECONDS,
    Job,
    config_line,
    launch_line,
    seconds_of,
)

_DIRECTIVE = re.compile(r"[a-z][a-z-]*(=[\w.,:@%/+-]+)?")


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
    seconds_of(time)
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
    launch = launch_line(job, rank="$SLURM_NODEID", python=sys.executable)
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{line}" for line in lines),
            "",
            f"# Written by gptoss-tune launch. {SAVING_SECONDS} seconds before the time is over,",
            "# and at a preemption, the ranks get SIGTERM, save a checkpoint and leave with 75;",
            "# the job is then queued again and goes on from there. A job ended by scancel is not.",
            "set -u",
            SAFE_PATH,
            f"cd -- {shlex.quote(str(Path.cwd()))} || exit 3",
            *job.setup,
            "# scancel signals this shell, a time limit or a preemption only the steps.",
            "cancelled=",
            "trap 'cancelled=1' TERM",
            "export MASTER_ADDR MASTER_PORT",
            PATIENCE,
            'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))  # jobs that share a node differ",
            config_line(job, sys.executable),
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
