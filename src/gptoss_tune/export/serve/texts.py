"""Texts that bundles share: compose files, YAML, shell scripts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss_tune.export.serve.deployment.addresses import published
from gptoss_tune.export.serve.deployment.health import (
    FAILURES,
    LIVE_PERIOD_S,
    loading_s,
    probe_command,
)
from gptoss_tune.export.serve.deployment.kubernetes import Workload, kubernetes_files
from gptoss_tune.export.serve.deployment.mounts import model_mounts, mounted
from gptoss_tune.export.serve.deployment.places import SHARED_MEMORY_GB, TO_SCRIPT
from gptoss_tune.export.serve.deployment.yaml_text import yaml_text
from gptoss_tune.export.serve.served import MODEL_MOUNT, PORT, Served, local

__all__ = ["compose_value", "mounted", "required", "script", "workload", "yaml_text"]


def required(name: str, what: str = "the key that clients must send") -> str:
    """Return a variable of a compose file without which nothing starts."""
    return f"${{{name}:?{what}}}"


def compose_value(
    served: Served,
    image: str,
    command: list[str],
    *,
    entrypoint: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    volumes: Sequence[Mapping[str, Any]] = (),
    health: str = "/health",
    health_key: str | None = None,
    keyed: bool = True,
) -> dict[str, Any]:
    """Return a compose file with one service on all GPUs, the model mounted read-only.

    Args:
        served: The model.
        image: The container's image.
        command: Arguments of the image's entry point, or of ``entrypoint``.
        entrypoint: Replaces the image's.
        environment: Variables besides the one that forbids the Hub.
        volumes: Mounts besides the model's, as ``mounted`` returns them.
        health: Path that answers once the model is loaded.
        health_key: The variable of the key that ``health`` wants, or None where it is open.
        keyed: Whether the server asks for a key. One that does not shares the host's network, where
            its command must make it listen on the loopback address: a published port would need it
            open inside the container.
    """
    service: dict[str, Any] = {"image": image, "restart": "unless-stopped"}
    if keyed:
        service["ports"] = [published(served.host, PORT)]
    else:
        service["network_mode"] = "host"
    if entrypoint:
        service["entrypoint"] = list(entrypoint)
    service |= {
        "command": command,
        "environment": {"HF_HUB_OFFLINE": "1", **(environment or {})},
        "volumes": [*model_mounts(local(served), f"{MODEL_MOUNT}/{served.name}"), *volumes],
        "shm_size": f"{SHARED_MEMORY_GB}gb",
        "ulimits": {"memlock": -1, "stack": 67_108_864},
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": "60s",
        "healthcheck": {
            "test": ["CMD", *probe_command(PORT, health, health_key)],
            "interval": f"{LIVE_PERIOD_S}s",
            "timeout": "10s",
            "retries": FAILURES,
            "start_period": f"{loading_s(served.weights)}s",
        },
        "logging": {"driver": "json-file", "options": {"max-size": "100m", "max-file": "5"}},
        "deploy": {
            "resources": {
                "reservations": {
                    "devices": [{"driver": "nvidia", "count": served.gpus, "capabilities": ["gpu"]}]
                },
                "limits": {"memory": f"{served.host_memory_gib}g"},
            }
        },
    }
    return {"services": {"model": service}}


def workload(
    served: Served, image: str, arguments: Sequence[str], **options: Any
) -> dict[str, str]:
    """Return the Kubernetes files of a server; ``options`` are those of ``Workload``."""
    return kubernetes_files(
        Workload(
            served.name,
            local(served),
            image,
            arguments,
            served.gpus,
            served.host_memory_gib,
            loading_s(served.weights),
            served.weights,
            **options,
        )
    )


def script(
    *commands: list[str],
    needed: str | None = None,
    exports: Mapping[str, str] | None = None,
    package: str | None = None,
    in_folder: bool = False,
) -> str:
    """Return a shell script.

    Args:
        commands: Commands with their arguments.
        needed: A variable without which it stops.
        exports: Variables to set first; ``$HERE`` in a value is the script's folder.
        package: A Python package whose installed version is written to stderr first.
        in_folder: Run the commands in the script's folder, so that they find what lies there.
    """
    lines = " \\\n".join
    values = (exports or {}).values()
    # No version() of a package that python3 lacks: it may be installed for another Python.
    version = (
        f"import importlib.metadata as m; found = [d.version for d in "
        f"m.distributions(name='{package}')]; print('{package}', *found[:1] or "
        "['is no package of python3: version not known'])"
    )
    return (
        "#!/bin/sh\nset -e\n"
        + (f': "${{{needed}:?the key that clients must send}}"\n' if needed else "")
        + (f"HERE=$({TO_SCRIPT} && pwd)\n" if "$HERE" in "".join(values) else "")
        + "".join(f'export {name}="{value}"\n' for name, value in (exports or {}).items())
        + (f"{TO_SCRIPT}\n" if in_folder else "")
        + (f'python3 -c "{version}" >&2 || true\n' if package else "")
        + "".join(
            ("exec " if command is commands[-1] else "")  # a signal reaches the server itself
            + lines([shlex.join(command[:3]), *("  " + part for part in _pairs(command[3:]))])
            + "\n"
            for command in commands
        )
    )


def _pairs(arguments: list[str]) -> list[str]:
    """Return arguments quoted, each option on a line with its value."""
    grouped: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--") or not grouped:
            grouped.append([argument])
        else:
            grouped[-1].append(argument)
    return [shlex.join(group) for group in grouped]
