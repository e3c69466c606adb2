"""Kubernetes objects of a server: a Deployment, its Service and policy, and the model's volume.

A server that knows a key listens on its pod's address, behind a Service of the cluster's inside;
the key is a Secret without which the pod does not start. One that knows none listens on the pod's
loopback address, and ``kubectl port-forward`` alone reaches it. Files of the bundle are mounted one
by one (``subPath``): a mounted ConfigMap holds links and folders of its own, which Triton takes for
models.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from gptoss_tune.export.serve.deployment.files import (
    VOCABULARY,
    VOCABULARY_VARIABLE,
)
from gptoss_tune.export.serve.deployment.health import (
    FAILURES,
    LIVE_PERIOD_S,
    probe_command,
)
from gptoss_tune.export.serve.deployment.places import (
    BUNDLE_MOUNT,
    MODEL_MOUNT,
    PORT,
    SHARED_MEMORY_GB,
    TO_SCRIPT,
)
from gptoss_tune.export.serve.deployment.yaml_text import yaml_text

SERVER = "kubernetes/server.yaml"
VOLUME = "kubernetes/volume.yaml"
COPY = "kubernetes/copy-model.sh"
_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
_CPUS_OF_GPU = 4


@dataclass(frozen=True)
class Workload:
    """A server as Kubernetes runs it.

    Attributes:
        name: The model's name; objects are named after it in lower case.
        source: The model's folder on the machine that copies it.
        image: The container's image.
        arguments: Arguments of the image's entry point, or of ``command``.
        gpus: GPUs of the pod.
        memory_gib: Memory that the pod may use.
        loading_s: Seconds until the server must answer.
        weights: Bytes of the model.
        command: Replaces the image's entry point.
        key: The variable that the server reads its key from, or None for one that knows none.
        ready: Path that answers when the model is loaded.
        live: Path that answers while the server lives.
        vocabulary: Whether openai-harmony's vocabulary lies on the volume, beside the model.
        small_files: Files that the server reads, by their path below ``small_files_mount``.
        small_files_mount: Where the container finds them.
    """

    name: str
    source: str
    image: str
    arguments: Sequence[str]
    gpus: int
    memory_gib: int
    loading_s: int
    weights: int
    command: Sequence[str] = ()
    key: str | None = None
    ready: str = "/health"
    live: str = "/health"
    vocabulary: bool = False
    small_files: Mapping[str, str] = field(default_factory=dict)
    small_files_mount: str = BUNDLE_MOUNT

    @property
    def object_name(self) -> str:
        """The name of its objects."""
        return self.name.lower()


def kubernetes_files(workload: Workload) -> dict[str, str]:
    """Return the server's objects, those of the model's volume, and a script that copies it."""
    name = workload.object_name
    keyed = workload.key is not None
    objects = [_config_map(workload)] if workload.small_files else []
    objects.append(_deployment(workload))
    objects += [_service(name)] if keyed else []
    objects.append(_policy(name, open_port=keyed))
    return {
        SERVER: yaml_text(*objects),
        VOLUME: yaml_text(_claim(workload), _copy_pod(workload)),
        COPY: _copy_script(workload),
    }


def _container(workload: Workload) -> dict[str, Any]:
    listening = {"ports": [{"name": "http", "containerPort": PORT}]} if workload.key else {}
    entry = {"command": list(workload.command)} if workload.command else {}
    return {
        "name": "server",
        "image": workload.image,
        **entry,
        "args": list(workload.arguments),
        "env": _environment(workload),
        **listening,
        **_probes(workload),
        "resources": _resources(workload),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "model", "mountPath": MODEL_MOUNT, "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *_mounts(workload),
        ],
    }


def _environment(workload: Workload) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "HF_HUB_OFFLINE", "value": "1"}]
    if workload.key:
        secret = {"name": f"{workload.object_name}-key", "key": "api-key"}
        found.append({"name": workload.key, "valueFrom": {"secretKeyRef": secret}})
    if workload.vocabulary:
        found.append({"name": VOCABULARY_VARIABLE, "value": f"{MODEL_MOUNT}/{VOCABULARY}"})
    if any(path.endswith(".py") for path in workload.small_files):
        found.append({"name": "PYTHONPATH", "value": workload.small_files_mount})
    return found


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": name}


def _probes(workload: Workload) -> dict[str, Any]:
    def asked(path: str) -> dict[str, Any]:
        if workload.key:
            return {"httpGet": {"path": path, "port": PORT}}
        return {"exec": {"command": probe_command(PORT, path)}}

    every = {"periodSeconds": LIVE_PERIOD_S, "timeoutSeconds": 10}
    starting = math.ceil(workload.loading_s / LIVE_PERIOD_S)
    return {
        "startupProbe": {**asked(workload.ready), **every, "failureThreshold": starting},
        "readinessProbe": {**asked(workload.ready), **every, "failureThreshold": 2},
        "livenessProbe": {**asked(workload.live), **every, "failureThreshold": FAILURES},
    }


def _resources(workload: Workload) -> dict[str, Any]:
    memory = f"{workload.memory_gib}Gi"
    gpus = {"nvidia.com/gpu": str(workload.gpus)}
    return {
        "requests": {"cpu": str(_CPUS_OF_GPU * workload.gpus), "memory": memory, **gpus},
        "limits": {"memory": memory, **gpus},
    }


def _mounts(workload: Workload) -> list[dict[str, Any]]:
    return [
        {
            "name": "files",
            "mountPath": f"{workload.small_files_mount}/{path}",
            "subPath": PurePosixPath(path).name,
            "readOnly": True,
        }
        for path in workload.small_files
    ]


def _config_map(workload: Workload) -> dict[str, Any]:
    name = workload.object_name
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-files", "labels": _labels(name)},
        "data": {PurePosixPath(path).name: text for path, text in workload.small_files.items()},
    }


def _deployment(workload: Workload) -> dict[str, Any]:
    name = workload.object_name
    shared = {"medium": "Memory", "sizeLimit": f"{SHARED_MEMORY_GB}Gi"}
    volumes: list[dict[str, Any]] = [
        {"name": "model", "persistentVolumeClaim": {"claimName": f"{name}-model"}},
        {"name": "shared-memory", "emptyDir": shared},
    ]
    if workload.small_files:
        volumes.append({"name": "files", "configMap": {"name": f"{name}-files"}})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": _labels(name)},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},  # a second server would wait for the first one's GPUs
            "progressDeadlineSeconds": workload.loading_s + 1800,  # an image has 10 GB
            "selector": {"matchLabels": _labels(name)},
            "template": {
                "metadata": {"labels": _labels(name)},
                "spec": {
                    "automountServiceAccountToken": False,
                    # A Service named vllm would set VLLM_PORT, which vLLM reads as a number.
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 60,
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                    "tolerations": [_TOLERATION],
                    "containers": [_container(workload)],
                    "volumes": volumes,
                },
            },
        },
    }


def _service(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": _labels(name)},
        "spec": {
            "type": "ClusterIP",
            "selector": _labels(name),
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }


def _policy(name: str, *, open_port: bool) -> dict[str, Any]:
    """Return who may connect: the namespace's pods to the port, or nobody."""
    pods = [{"podSelector": {}}]
    rules = [{"from": pods, "ports": [{"protocol": "TCP", "port": PORT}]}] if open_port else []
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": _labels(name)},
        "spec": {
            "podSelector": {"matchLabels": _labels(name)},
            "policyTypes": ["Ingress"],
            "ingress": rules,
        },
    }


def _claim(workload: Workload) -> dict[str, Any]:
    name = workload.object_name
    size = math.ceil(workload.weights * 1.1 / 2**30) + 5
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": f"{name}-model", "labels": _labels(name)},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{size}Gi"}},
        },
    }


def _copy_pod(workload: Workload) -> dict[str, Any]:
    """Return a pod that holds the volume while the model is copied into it."""
    name = workload.object_name
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{name}-copy", "labels": {"app.kubernetes.io/name": f"{name}-copy"}},
        "spec": {
            "automountServiceAccountToken": False,
            "restartPolicy": "Never",
            "tolerations": [_TOLERATION],
            "containers": [
                {
                    "name": "copy",
                    "image": workload.image,
                    "command": ["sleep", "86400"],
                    "resources": {"limits": {"cpu": "2", "memory": "4Gi"}},
                    "securityContext": {"allowPrivilegeEscalation": False},
                    "volumeMounts": [{"name": "model", "mountPath": MODEL_MOUNT}],
                }
            ],
            "volumes": [{"name": "model", "persistentVolumeClaim": {"claimName": f"{name}-model"}}],
        },
    }


def _copy_script(workload: Workload) -> str:
    """Return a script that copies the model into the volume and compares every byte.

    What the volume held under the same names is removed first: a server would take shards of an
    earlier model for its own. A copy gets its name once it is known to be whole, so a script that
    was stopped leaves nothing that a server loads. ``sh`` forgets the status of a pipe's left side:
    checksums go to a file before anything is changed, and ``tar`` leaves a file where it fails.
    """
    pod = f"{workload.object_name}-copy"
    copied = [(shlex.quote(workload.source), f"{MODEL_MOUNT}/{workload.name}")]
    if workload.vocabulary:
        copied.append((f'"$HERE/../{VOCABULARY}"', f"{MODEL_MOUNT}/{VOCABULARY}"))
    lines = [
        "#!/bin/sh",
        "set -e",
        f"HERE=$({TO_SCRIPT} && pwd)",
        "TEMP=$(mktemp -d)",
        "trap 'rm -rf \"$TEMP\"' EXIT",
    ]
    for n, (source, _) in enumerate(copied):
        summed = f"cd {source} && find -L . -type f -exec sha256sum {{}} +"
        lines += [f'({summed}) > "$TEMP/sums{n}"', f'COUNT{n}=$(wc -l < "$TEMP/sums{n}")']
    lines += [
        'kubectl apply -f "$HERE/volume.yaml"',
        f"kubectl wait --for=condition=Ready pod/{pod} --timeout=30m",
    ]
    for n, (source, place) in enumerate(copied):
        part = f"{place}.part"
        lines += [
            f"kubectl exec {pod} -- sh -ec 'rm -rf {place} {part}; mkdir -p {part}'",
            f'{{ tar -C {source} -chf - . || : > "$TEMP/failed"; }} |',
            f"  kubectl exec -i {pod} -- tar -C {part} --no-same-owner -xf -",
            '[ ! -e "$TEMP/failed" ]',
            f"kubectl exec -i {pod} -- sh -ec '",
            f"  cd {part}",
            "  sha256sum --quiet -c -",
            "  found=$(find . ! -type d -exec echo x \\; | wc -l)",
            f"  [ $found -eq '$COUNT{n}' ] || {{",
            f"    echo \"{part} holds $found files, expected\" '$COUNT{n}' >&2; exit 1; }}",
            f"  mv {part} {place}",
            f'\' < "$TEMP/sums{n}"',
        ]
    lines += [
        f"kubectl exec {pod} -- chmod -R a+rX {MODEL_MOUNT}",
        f"kubectl delete pod {pod}",
    ]
    return "\n".join(lines) + "\n"
