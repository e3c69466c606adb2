"""llama.cpp's own server: a start script, and a compose file.

Its template engine renders the chat template inside the file, its parser tells the channels apart:
``--jinja`` asks for both. It listens on the loopback address, and for others with a key.
"""

from __future__ import annotations

import shlex
from typing import Any, Final

from gptoss_tune.export.serve.deployment.addresses import published
from gptoss_tune.export.serve.deployment.mounts import mounted
from gptoss_tune.export.serve.deployment.yaml_text import yaml_text
from gptoss_tune.export.serve.laptop.model import LaptopModel

KEY: Final = "LLAMA_API_KEY"
"""The variable that llama-server reads its key from: in no list of processes."""
PORT: Final = 8080
IMAGE: Final = "ghcr.io/ggml-org/llama.cpp:server-cuda-b11382"
"""Named by a public repository that runs this tag, looked up 2026-11-28; no registry was asked."""
_MOUNT: Final = "/models"


def llama_cpp(model: LaptopModel) -> dict[str, str]:
    """Return ``serve.sh`` and ``compose.yaml``."""
    command = ["llama-server", *server_arguments(model, str(model.files[0]), model.host)]
    lines = [shlex.join(command[:1]), *(shlex.join(pair) for pair in _pairs(command[1:]))]
    needed = f': "${{{KEY}:?the key that clients must send}}"\nexport {KEY}\n'
    script = "#!/bin/sh\nset -e\n" + (needed if model.open_to_others else "")
    return {
        "serve.sh": script + "exec " + " \\\n  ".join(lines) + "\n",
        "compose.yaml": yaml_text(_compose(model)),
    }


def server_arguments(model: LaptopModel, file: str, host: str) -> list[str]:
    """Return what ``llama-server`` is started with.

    The samplers are those that gpt-oss is recommended with: temperature 1 and all tokens; the
    server's own are others. ``--gpu-layers all`` is ignored, with a warning, where no GPU is.
    """
    return [
        *("--model", file, "--alias", model.name, "--ctx-size", str(model.context)),
        *("--jinja", "--reasoning-format", "auto", "--gpu-layers", "all"),
        *("--temp", "1.0", "--top-p", "1.0", "--top-k", "0", "--min-p", "0.0"),
        *("--chat-template-kwargs", f'{{"reasoning_effort": "{model.effort}"}}'),
        *("--host", host, "--port", str(PORT)),
    ]


def _compose(model: LaptopModel) -> dict[str, Any]:
    gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    service = {
        "image": IMAGE,
        "restart": "unless-stopped",
        "ports": [published(model.host, PORT)],
        "environment": {KEY: f"${{{KEY}:?the key that clients must send}}"},
        "command": server_arguments(model, f"{_MOUNT}/{model.files[0].name}", "0.0.0.0"),
        "volumes": [mounted(str(file), f"{_MOUNT}/{file.name}") for file in model.files],
        "security_opt": ["no-new-privileges:true"],
        "deploy": {"resources": {"reservations": {"devices": [gpu]}}},
    }
    return {"services": {"model": service}}


def _pairs(arguments: list[str]) -> list[list[str]]:
    """Return arguments, each option with its value."""
    grouped: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--") or not grouped:
            grouped.append([argument])
        else:
            grouped[-1].append(argument)
    return grouped
