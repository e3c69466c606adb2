"""Hugging Face Jobs: a shell script that sends the recipe's files and starts ``hf jobs run``.

The run lies in a bucket of the Hub, mounted into the container; the same script again goes on from
its newest checkpoint. A script for ``hf jobs uv run`` was the alternative: it would start one
process, and the launcher for several GPUs would have to be written once more in it.
"""

from __future__ import annotations

import re
import shlex
from pathlib import PurePosixPath

from gptoss_tune.errors import RecipeError
from gptoss_tune.workflows.cluster.job import (
    IMAGE,
    Job,
    Luggage,
    job_name,
    node_script,
    refuse_other_file,
    seconds_of,
)

FLAVORS = {1: "h200", 2: "h200x2", 4: "h200x4", 8: "h200x8"}
"""The flavor that is taken for a number of GPUs."""
_RUNS = "/gptoss-runs"
_ATTEMPTS = 3
_BUCKET = re.compile(r"hf://buckets/[\w.-]+/[\w.-]+")
_FLAVOR = re.compile(r"[a-z0-9-]+?(?:x(?P<gpus>\d+))?")


def run_folder(output_dir: str) -> str:
    """Return where the run lies in the bucket."""
    return f"{_RUNS}/{job_name(PurePosixPath(output_dir).name)}"


def hf_jobs_script(
    job: Job, luggage: Luggage, *, flavor: str | None, bucket: str | None, time: str
) -> str:
    """Return a shell script that submits the job when it is run.

    Args:
        job: What is run, on one machine.
        luggage: The recipe, whose run lies in ``run_folder``, and what it needs.
        flavor: Hardware; ``None``: H200s, as many as the job has processes.
        bucket: ``hf://buckets/OWNER/NAME`` for the run.
        time: Longest time, as Slurm writes it.

    Raises:
        RecipeError: Several machines, no bucket, or a flavor of another number of GPUs.
    """
    _refuse(job, bucket)
    flavor = flavor or _flavor(job.gpus_per_node)
    _check_flavor(flavor, job.gpus_per_node)
    inputs = ["cp -R /inputs/. . || exit 3"] if luggage.files else []
    script = node_script(
        job,
        rank="0",
        before=[
            *luggage.install(),
            "mkdir -p /tmp/gptoss-job && cd /tmp/gptoss-job || exit 3",
            *inputs,
            *luggage.write_recipe(),
            *luggage.link_data(),
        ],
        master=[],
    )
    options = [
        f"--name {shlex.quote(job.name)}",
        f"--flavor {flavor}",
        f"--timeout {seconds_of(time)}s",
        f"--attempts {_ATTEMPTS}",
        *(f"--secrets {secret}" for secret in luggage.secrets),
        f"--volume {bucket}:{_RUNS}",
    ]
    sent: list[str] = []
    if luggage.files:
        options.append('--volume "$inputs":/inputs')
        words = shlex.join(luggage.files)
        sent = [
            "# The files that the recipe reads, and no other.",
            "inputs=$(mktemp -d)",
            f'tar -C {shlex.quote(str(luggage.folder))} -cf - -- {words} | tar -C "$inputs" -xf -',
        ]
    image = shlex.quote(luggage.image or IMAGE)
    return "\n".join(
        [
            "#!/bin/bash",
            "# Written by gptoss-tune launch, for: bash FILE, from any folder.",
            "# The run lies in the bucket; after a timeout the same command goes on from there.",
            "set -euo pipefail",
            *sent,
            "script=$(cat <<'END_OF_SCRIPT'",
            script.rstrip(),
            "END_OF_SCRIPT",
            ")",
            "hf jobs run \\",
            *(f"  {option} \\" for option in options),
            f'  --detach {image} bash -c "$script"',
            "",
        ]
    )


def _refuse(job: Job, bucket: str | None) -> None:
    if job.nodes > 1:
        raise RecipeError(f"--nodes {job.nodes}: a job of Hugging Face has one machine")
    if bucket is None or not _BUCKET.fullmatch(bucket):
        got = "none" if bucket is None else repr(bucket)
        raise RecipeError(
            f"--bucket: got {got}, expected hf://buckets/OWNER/NAME, where the run lies; make one "
            "with: hf buckets create OWNER/NAME"
        )
    refuse_other_file(job)


def _flavor(gpus: int) -> str:
    if gpus not in FLAVORS:
        raise RecipeError(
            f"--gpus-per-node {gpus}: no machine has so many; one of "
            f"{', '.join(map(str, FLAVORS))}, or --gpu with another flavor"
        )
    return FLAVORS[gpus]


def _check_flavor(flavor: str, gpus: int) -> None:
    """Refuse a flavor that has another number of GPUs than the job has processes."""
    match = _FLAVOR.fullmatch(flavor)
    if match is None:
        raise RecipeError(f"--gpu: got {flavor!r}, expected a flavor such as a100-large or h200x8")
    has = int(match["gpus"] or 1)
    if has != gpus:
        raise RecipeError(
            f"--gpu {flavor} has {has} GPU{'s' if has > 1 else ''}, --gpus-per-node says {gpus}; "
            f"set --gpus-per-node {has}"
        )
