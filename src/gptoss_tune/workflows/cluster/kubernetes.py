"""A Kubernetes Job: the recipe in a ConfigMap, the run and the data on a volume that stays.

Exit code 75 and evictions make a new pod and do not count; any other failure ends the job, since
it would come again. ``backoffLimit`` alone, the alternative, cannot tell a preemption from a
mistake in a recipe.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from gptoss_tune.errors import RecipeError
from gptoss_tune.workflows.cluster.job import (
    IMAGE,
    SAVING_SECONDS,
    Job,
    Luggage,
    job_name,
    label_name,
    node_script,
    refuse_other_file,
)
from gptoss_tune.workflows.cluster.shell_yaml import Block, shell_yaml

VOLUME = "/job"
"""Where the volume is mounted: the current folder of the run."""
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_TOKENS = "gptoss-tokens"


def run_folder(output_dir: str) -> str:
    """Return where the run lies on the volume."""
    if PurePosixPath(output_dir).is_absolute():
        return f"{VOLUME}/runs/{job_name(PurePosixPath(output_dir).name)}"
    return f"{VOLUME}/{output_dir}"


def kubernetes_job(job: Job, luggage: Luggage, *, claim: str) -> str:
    """Return a ConfigMap, a Job and, for several nodes, the Service by which they find each other.

    Args:
        job: What is run.
        luggage: The recipe, whose run lies in ``run_folder``, and what it needs.
        claim: PersistentVolumeClaim that holds the data and the run; it exists already.

    Raises:
        RecipeError: A name that Kubernetes does not take.
    """
    if not _CLAIM.fullmatch(claim):
        raise RecipeError(f"--claim: got {claim!r}, expected the name of a PersistentVolumeClaim")
    refuse_other_file(job)
    name = label_name(job.name)
    labels = {"app.kubernetes.io/name": "gptoss-tune", "app.kubernetes.io/instance": name}
    recipe = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-recipe", "labels": labels},
        "data": {"recipe.yaml": Block(luggage.recipe)},
    }
    documents = [recipe]
    if job.nodes > 1:
        # Without an address of its own: each pod has a name in it, NAME-0.NAME for the first.
        documents.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": name, "labels": labels},
                "spec": {
                    "clusterIP": "None",
                    "publishNotReadyAddresses": True,
                    "selector": {"app.kubernetes.io/instance": name},
                },
            }
        )
    spec: dict[str, Any] = {
        "completions": job.nodes,
        "parallelism": job.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _rules()},
        "template": {
            "metadata": {"labels": labels},
            "spec": _pod(job, luggage, name, claim),
        },
    }
    documents.append(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "labels": labels},
            "spec": spec,
        }
    )
    return _comment(luggage, name, claim) + shell_yaml(*documents)


def _rules() -> list[dict[str, Any]]:
    """Return what a failed pod means; the first rule that fits is taken."""
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {
            "action": "Ignore",
            "onExitCodes": {"containerName": "train", "operator": "In", "values": [75]},
        },
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "train", "operator": "NotIn", "values": [75]},
        },
    ]


def _pod(job: Job, luggage: Luggage, name: str, claim: str) -> dict[str, Any]:
    script = node_script(
        job,
        rank="$JOB_COMPLETION_INDEX",
        before=[
            *luggage.install(),
            f"cd {VOLUME} || exit 3",
            *luggage.link_data(),
        ],
        master=[f"MASTER_ADDR={name}-0.{name}"],
    )
    gpus = {"nvidia.com/gpu": job.gpus_per_node}
    container: dict[str, Any] = {
        "name": "train",
        "image": luggage.image or IMAGE,
        "command": ["bash", "-c", Block(script)],
        "env": [
            # Downloads of the Hub and rendered data stay with the run.
            {"name": "HF_HOME", "value": f"{VOLUME}/.cache/huggingface"},
            {"name": "XDG_CACHE_HOME", "value": f"{VOLUME}/.cache"},
            *(_token(secret) for secret in luggage.secrets),
        ],
        "resources": {"limits": gpus},
        "volumeMounts": [
            {"name": "work", "mountPath": VOLUME},
            {"name": "recipe", "mountPath": "/recipe", "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SAVING_SECONDS,
        "containers": [container],
        "volumes": [
            {"name": "work", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "recipe", "configMap": {"name": f"{name}-recipe"}},
            # The processes of a node talk through it; the default is 64 MB.
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    if job.nodes > 1:
        pod["subdomain"] = name
    return pod


def _token(secret: str) -> dict[str, Any]:
    """Return a variable whose value lies in the cluster's Secret, where it has one."""
    reference = {"name": _TOKENS, "key": secret, "optional": True}
    return {"name": secret, "valueFrom": {"secretKeyRef": reference}}


def _comment(luggage: Luggage, name: str, claim: str) -> str:
    lines = [
        "Written by gptoss-tune launch, for: kubectl apply -f FILE",
        f"Again after a failure: kubectl delete job {name}, then apply; it goes on from the",
        "newest checkpoint. Exit code 75 and evictions start a new pod by themselves.",
        f"The claim {claim} holds data and run; several nodes need it ReadWriteMany.",
    ]
    if luggage.files:
        lines.append(f"It has to hold, below its top folder: {', '.join(luggage.files)}")
    if luggage.secrets:
        keys = " ".join(f"--from-literal={secret}=..." for secret in luggage.secrets)
        lines.append(f"Tokens, once: kubectl create secret generic {_TOKENS} {keys}")
    return "".join(f"# {line}\n" for line in lines)
