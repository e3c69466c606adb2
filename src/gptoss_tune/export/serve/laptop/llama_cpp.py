"""llama.cpp's own server: a start script, and a compose file.

Its template engine renders the chat template inside the file, its parser tells the channels apart:
``--jinja`` asks for both. It listens on the loopback address, and for others with a key.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any, Final

from gptoss_tune.export.serve.deployment.addresses import published, url_of
from gptoss_tune.export.serve.deployment.health import FAILURES, LIVE_PERIOD_S, loading_s
from gptoss_tune.export.serve.deployment.mounts import mounted
from gptoss_tune.export.serve.deployment.yaml_text import yaml_text
from gptoss_tune.export.serve.laptop.model import LaptopModel
from gptoss_tune.export.serve.laptop.readme import Told, code, laptop_readme

KEY: Final = "LLAMA_API_KEY"
"""The variable that llama-server reads its key from: in no list of processes."""
PORT: Final = 8080
IMAGE: Final = "ghcr.io/ggml-org/llama.cpp:server-cuda-b11382"
"""Named by a public repository that runs this tag, looked up 2026-11-28; no registry was asked."""
CHECKED: Final = "every flag was checked in the source of llama-cpp-python 0.3.36's llama.cpp"
_MOUNT: Final = "/models"


def llama_cpp(model: LaptopModel) -> dict[str, str]:
    """Return ``serve.sh``, ``compose.yaml`` and ``README.md``."""
    command = ["llama-server", *server_arguments(model, str(model.files[0]), model.host)]
    lines = [shlex.join(command[:1]), *(shlex.join(pair) for pair in _pairs(command[1:]))]
    needed = f': "${{{KEY}:?the key that clients must send}}"\nexport {KEY}\n'
    script = "#!/bin/sh\nset -e\n" + (needed if model.open_to_others else "")
    return {
        "serve.sh": script + "exec " + " \\\n  ".join(lines) + "\n",
        "compose.yaml": yaml_text(_compose(model)),
        "README.md": _readme(model),
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
    """Return the compose file; its image holds curl, by llama.cpp's own Dockerfile, no Python."""
    command = server_arguments(model, f"{_MOUNT}/{model.files[0].name}", "0.0.0.0")
    gpu = {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    service = {
        "image": model.image or IMAGE,
        "restart": "unless-stopped",
        "ports": [published(model.host, PORT)],
        "environment": {KEY: f"${{{KEY}:?the key that clients must send}}"},
        "command": [word.replace("$", "$$") for word in command],
        "volumes": [_mount(file) for file in model.files],
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": "60s",
        "healthcheck": {
            "test": ["CMD", "curl", "-fsS", f"http://127.0.0.1:{PORT}/health"],
            "interval": f"{LIVE_PERIOD_S}s",
            "timeout": "10s",
            "retries": FAILURES,
            "start_period": f"{loading_s(model.nbytes)}s",
        },
        "logging": {"driver": "json-file", "options": {"max-size": "100m", "max-file": "5"}},
        "deploy": {
            "resources": {
                "reservations": {"devices": [gpu]},
                "limits": {"memory": f"{_memory_gib(model)}g"},
            }
        },
    }
    return {"services": {"model": service}}


def _mount(file: Path) -> dict[str, Any]:
    return mounted(str(file), f"{_MOUNT}/{file.name}".replace("$", "$$"))


def _memory_gib(model: LaptopModel) -> int:
    """Return the GiB of the machine's memory that a container may use.

    The weights once, where they or a part of them stay off the GPU, and 16 for the keys and values
    there and the 8 in which the server keeps earlier prompts: no measurement, a bound.
    """
    return math.ceil(model.nbytes / 2**30) + 16


def _readme(model: LaptopModel) -> str:
    own = "" if model.open_to_others else " `serve.sh` on this machine's own address needs none."
    image = f"image `{model.image or IMAGE}`, " + (
        "as asked; its flags were not checked"
        if model.image
        else "known from a public repository that runs this tag, not started here; another is "
        "taken with `--image`"
    )
    return laptop_readme(
        model,
        Told(
            "llama.cpp",
            [
                f"`{KEY}`: the key that clients must send; the container does not start without "
                f"it.{own} `export {KEY}=$(openssl rand -hex 32)` makes one"
            ],
            [
                "With llama.cpp installed on this machine:",
                "",
                code("./serve.sh"),
                "",
                "With Docker and the NVIDIA container toolkit:",
                "",
                code("docker compose up -d --wait", "docker compose logs -f"),
                "",
                f"Loading may take {loading_s(model.nbytes) // 60} minutes before a probe gives it "
                f"up. The container may use {_memory_gib(model)} GiB of the machine's memory. Both "
                "are bounds, not measurements.",
            ],
            url_of(model.host, PORT),
            model.name,
            KEY,
            [image, CHECKED],
        ),
    )


def _pairs(arguments: list[str]) -> list[list[str]]:
    """Return arguments, each option with its value."""
    grouped: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--") or not grouped:
            grouped.append([argument])
        else:
            grouped[-1].append(argument)
    return grouped
