"""Texts that bundles share: compose files, YAML, shell scripts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from gptoss_tune.export.serve.served import LOOPBACK, MODEL_MOUNT, PORT, Served, local


def required(name: str, what: str = "the key that clients must send") -> str:
    """Return a variable of a compose file without which nothing starts."""
    return f"${{{name}:?{what}}}"


def published(served: Served, port: int) -> str:
    """Return the port of a container as compose publishes it: on this machine, or on ``host``."""
    host = f"[{served.host}]" if ":" in served.host else served.host
    host = LOOPBACK[0] if host == "localhost" else host
    return f"{host}:{port}:{port}"


def compose_value(served: Served, image: str, command: list[str]) -> dict[str, Any]:
    """Return a compose file with one service on all GPUs, the model mounted read-only."""
    service: dict[str, Any] = {
        "image": image,
        "ports": [published(served, PORT)],
        "volumes": [f"{local(served)}:{MODEL_MOUNT}/{served.name}:ro"],
        "ipc": "host",
        "command": command,
        "deploy": {
            "resources": {
                "reservations": {
                    "devices": [{"driver": "nvidia", "count": served.gpus, "capabilities": ["gpu"]}]
                }
            }
        },
    }
    return {"services": {"model": service}}


def yaml_text(value: Mapping[str, Any]) -> str:
    """Return ``value`` as YAML, keys in their order."""
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)


def script(*commands: list[str], needed: str | None = None) -> str:
    """Return a shell script; ``needed`` names a variable without which it stops."""
    lines = " \\\n".join
    return (
        "#!/bin/sh\nset -e\n"
        + (f': "${{{needed}:?the key that clients must send}}"\n' if needed else "")
        + "\n".join(
            lines([shlex.join(command[:3]), *("  " + part for part in _pairs(command[3:]))])
            for command in commands
        )
        + "\n"
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
