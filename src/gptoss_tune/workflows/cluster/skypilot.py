"""A SkyPilot task: it can be launched from any folder, and installs what it needs.

The recipe stands in the file, the files that it reads are sent from where they lie. The
alternative, ``workdir: .``, sends all of the current folder, runs and environments included, and
nothing of use when it is launched from elsewhere.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from gptoss_tune.errors import RecipeError
from gptoss_tune.workflows.cluster.job import (
    Job,
    Luggage,
    job_name,
    node_script,
    refuse_other_file,
)
from gptoss_tune.workflows.cluster.shell_yaml import Block, shell_yaml

_RUNS = "/gptoss-runs"
_FOLDER = "~/gptoss-job"
_BUCKET = re.compile(r"(s3|gs|r2|cos|nebius|https)://[\w./-]+")
_GPU = re.compile(r"[\w-]+")


def run_folder(output_dir: str, bucket: str | None) -> str:
    """Return where the run lies on the machine: in the bucket, or where the recipe says."""
    if bucket is None:
        return output_dir
    return f"{_RUNS}/{job_name(PurePosixPath(output_dir).name)}"


def skypilot_task(job: Job, luggage: Luggage, *, gpu: str, bucket: str | None, spot: bool) -> str:
    """Return a SkyPilot task for ``sky jobs launch``.

    Args:
        job: What is run.
        luggage: The recipe, whose run lies in ``run_folder``, and what it needs.
        gpu: SkyPilot's name of the GPU.
        bucket: Where the run's folder lies, so that a recovered job finds it.
        spot: On spot machines.

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
    refuse_other_file(job)
    task: dict[str, Any] = {
        "name": job.name,
        "num_nodes": job.nodes,
        "resources": {
            "accelerators": f"{gpu}:{job.gpus_per_node}",
            "use_spot": spot,
            "disk_size": 256,
            "job_recovery": {"recover_on_exit_codes": [75], "max_restarts_on_errors": 0},
        },
    }
    if luggage.image is not None:
        task["resources"]["image_id"] = f"docker:{luggage.image}"
    if luggage.secrets:
        # Null: their values come from the shell that launches, and are never in a file.
        task["secrets"] = dict.fromkeys(luggage.secrets)
    mounts: dict[str, Any] = {
        f"{_FOLDER}/{file}": str(luggage.folder / file) for file in luggage.files
    }
    if bucket is not None:
        # Written through a cache: a checkpoint gets its name by renaming its folder.
        mounts[_RUNS] = {"source": bucket, "mode": "MOUNT_CACHED"}
    if mounts:
        task["file_mounts"] = mounts
    install = [*job.setup, *luggage.install()]
    if install:
        task["setup"] = Block("\n".join(install) + "\n")
    script = node_script(
        job,
        rank="$SKYPILOT_NODE_RANK",
        before=[
            f"mkdir -p {_FOLDER} && cd {_FOLDER} || exit 3",
            *luggage.write_recipe(),
            *luggage.link_data(),
        ],
        master=['MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'],
    )
    task["run"] = Block(script)
    comment = (
        "# Written by gptoss-tune launch, for: sky jobs launch FILE, from any folder.\n"
        "# The ranks answer SIGTERM with a checkpoint and 75, from which the job is recovered; a\n"
        "# machine that is lost without a signal costs the steps since the last checkpoint.\n"
    )
    return comment + shell_yaml(task)
