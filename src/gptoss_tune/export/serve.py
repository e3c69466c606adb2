"""Files and commands that serve a model: vLLM, SGLang, transformers, Triton, Azure ML, NIM.

Each target is one function from the facts of a model to ``{file name: text}``. Only what a target's
public schema names is written; image tags and instance types are plain text for the user to pin,
because a version that is right today is wrong next month. A target that cannot serve an adapter of
gpt-oss says so instead of serving the base.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.atomic import staged

_MODEL_MOUNT = "/models"
_PORT = 8000
_SAFE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")  # Azure's rule, the strictest


@dataclass(frozen=True)
class Served:
    """A model to serve.

    Attributes:
        name: The name under which clients ask for it.
        path: Folder of the merged checkpoint, or the base's name when ``adapter`` is set.
        context: Longest prompt and answer together, in tokens.
        gpus: GPUs that share the weights.
        adapter: Folder of an adapter in vLLM's form, with its rank, or None.
    """

    name: str
    path: str
    context: int = 32_768
    gpus: int = 1
    adapter: tuple[Path, int] | None = None

    def __post_init__(self) -> None:
        """Refuse a name that one of the targets would refuse."""
        if not _SAFE_NAME.fullmatch(self.name):
            raise CheckpointError(
                f"--name is '{self.name}'; expected 3 to 32 letters, digits and dashes, a letter "
                "first: endpoints and model repositories use it"
            )


def write_bundle(served: Served, target: str, out: Path) -> list[str]:
    """Write the files of one target to the new folder ``out`` and return their names.

    Raises:
        CheckpointError: The target cannot serve this model, or ``out`` exists.
    """
    if served.adapter and target != "vllm":
        raise CheckpointError(
            f"{served.adapter[0]}: {target} is not known to serve expert adapters of gpt-oss; "
            "merge first: gptoss-tune merge RUN --format mxfp4 --out DIR"
        )
    files = TARGETS[target](served)
    with staged(out) as folder:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if name.endswith(".sh"):
                path.chmod(0o755)
    return sorted(files)


def _vllm_arguments(served: Served, model: str) -> list[str]:
    arguments = [
        model,
        "--served-model-name",
        served.name,
        "--max-model-len",
        str(served.context),
        "--tensor-parallel-size",
        str(served.gpus),
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "openai",
    ]
    if served.adapter:
        folder, rank = served.adapter
        module = json.dumps({"name": served.name, "path": str(folder.absolute())})
        arguments[2] = f"{served.name}-base"
        arguments += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", module]
    return arguments


def _vllm(served: Served) -> dict[str, str]:
    """Return a start script, and a compose file for a merged model."""
    files = {"serve.sh": _script(["vllm", "serve", *_vllm_arguments(served, _local(served))])}
    if served.adapter is None:
        command = _vllm_arguments(served, f"{_MODEL_MOUNT}/{served.name}")
        files["compose.yaml"] = _compose(served, "vllm/vllm-openai", command)
    return files


def _sglang(served: Served) -> dict[str, str]:
    def arguments(model: str) -> list[str]:
        return [
            *("python", "-m", "sglang.launch_server", "--model-path", model),
            *("--served-model-name", served.name, "--context-length", str(served.context)),
            *("--tp", str(served.gpus), "--reasoning-parser", "gpt-oss"),
            *("--tool-call-parser", "gpt-oss", "--host", "0.0.0.0", "--port", str(_PORT)),
        ]

    command = arguments(f"{_MODEL_MOUNT}/{served.name}")
    return {
        "serve.sh": _script(arguments(_local(served))),
        "compose.yaml": _compose(served, "lmsysorg/sglang", command),
    }


def _transformers(served: Served) -> dict[str, str]:
    command = ["transformers", "serve", _local(served), "--host", "0.0.0.0", "--port", str(_PORT)]
    return {"serve.sh": _script([*command, "--continuous-batching"])}


def _triton_server(served: Served) -> dict[str, str]:
    """Return a model repository with the vLLM backend.

    See triton-inference-server/vllm_backend: the engine's arguments stand in ``1/model.json``.
    """
    engine = {
        "model": f"{_MODEL_MOUNT}/{served.name}",
        "served_model_name": served.name,
        "max_model_len": served.context,
        "tensor_parallel_size": served.gpus,
    }
    repository = f"model_repository/{served.name}"
    command = ["tritonserver", "--model-repository=/repository"]
    compose = _compose_value(served, "nvcr.io/nvidia/tritonserver:YY.MM-vllm-python-py3", command)
    compose["services"]["model"]["volumes"].append("./model_repository:/repository:ro")
    compose["services"]["model"]["ports"] = ["8000:8000", "8001:8001", "8002:8002"]
    return {
        f"{repository}/1/model.json": json.dumps(engine, indent=2) + "\n",
        f"{repository}/config.pbtxt": (
            f'name: "{served.name}"\n'
            'backend: "vllm"\n'
            "# The engine itself places the model on the GPUs.\n"
            "instance_group [ { count: 1 kind: KIND_MODEL } ]\n"
            "model_transaction_policy { decoupled: true }\n"
        ),
        "compose.yaml": _yaml(compose),
    }


def _azure_ml(served: Served) -> dict[str, str]:
    """Return a managed online endpoint and its deployment for ``az ml``.

    See the YAML reference of Azure ML CLI v2, managedOnlineEndpoint and managedOnlineDeployment.
    """
    schemas = "https://azuremlschemas.azureedge.net/latest"
    endpoint = {
        "$schema": f"{schemas}/managedOnlineEndpoint.schema.json",
        "name": served.name,
        "auth_mode": "key",
    }
    route = {"port": _PORT, "path": "/health"}
    model = f"{_MODEL_MOUNT}/{Path(served.path).name}"
    probe = {"initial_delay": 600, "period": 30, "timeout": 10, "failure_threshold": 30}
    deployment = {
        "$schema": f"{schemas}/managedOnlineDeployment.schema.json",
        "name": "blue",
        "endpoint_name": served.name,
        "model": {"name": served.name, "type": "custom_model", "path": _local(served)},
        "model_mount_path": _MODEL_MOUNT,
        "environment": {
            "name": f"{served.name}-vllm",
            "build": {"path": "environment"},
            "inference_config": {
                "liveness_route": route,
                "readiness_route": route,
                "scoring_route": {"port": _PORT, "path": "/"},
            },
        },
        "instance_type": "Standard_NC40ads_H100_v5",
        "instance_count": 1,
        "request_settings": {
            "request_timeout_ms": 180_000,
            "max_concurrent_requests_per_instance": 64,
        },
        "liveness_probe": probe,
        "readiness_probe": probe,
    }
    command = ["vllm", "serve", *_vllm_arguments(served, model), "--port", str(_PORT)]
    dockerfile = f"FROM vllm/vllm-openai:latest\nENTRYPOINT {json.dumps(command)}\n"
    return {
        "endpoint.yaml": _yaml(endpoint),
        "deployment.yaml": _yaml(deployment),
        "environment/Dockerfile": dockerfile,
        "deploy.sh": _script(
            ["az", "ml", "online-endpoint", "create", "--file", "endpoint.yaml"],
            [
                *("az", "ml", "online-deployment", "create", "--all-traffic"),
                *("--file", "deployment.yaml"),
            ],
        ),
    }


def _nim(served: Served) -> dict[str, str]:
    """Return a compose file for the NIM container that serves any local model."""
    compose = _compose_value(served, "nvcr.io/nim/nvidia/llm-nim:latest", None)
    compose["services"]["model"]["environment"] = {
        "NIM_MODEL_NAME": f"{_MODEL_MOUNT}/{served.name}",
        "NIM_SERVED_MODEL_NAME": served.name,
        "NIM_MAX_MODEL_LEN": str(served.context),
        "NIM_TENSOR_PARALLEL_SIZE": str(served.gpus),
        "NGC_API_KEY": "${NGC_API_KEY:?log in at ngc.nvidia.com}",
    }
    return {"compose.yaml": _yaml(compose)}


TARGETS: Mapping[str, Callable[[Served], dict[str, str]]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "transformers": _transformers,
    "triton-server": _triton_server,
    "azure-ml": _azure_ml,
    "nim": _nim,
}
"""What can be written, by the name on the command line."""


def _local(served: Served) -> str:
    """Return the model as this machine names it: an absolute folder, or a name on the Hub."""
    return str(Path(served.path).absolute()) if Path(served.path).is_dir() else served.path


def _compose(served: Served, image: str, command: list[str]) -> str:
    return _yaml(_compose_value(served, f"{image}:latest", command))


def _compose_value(served: Served, image: str, command: list[str] | None) -> dict[str, Any]:
    """Return a compose file with one service on all GPUs, the model mounted read-only."""
    service: dict[str, Any] = {
        "image": image,
        "ports": [f"{_PORT}:{_PORT}"],
        "volumes": [f"{_local(served)}:{_MODEL_MOUNT}/{served.name}:ro"],
        "ipc": "host",
        "deploy": {
            "resources": {
                "reservations": {
                    "devices": [{"driver": "nvidia", "count": served.gpus, "capabilities": ["gpu"]}]
                }
            }
        },
    }
    if command is not None:
        service["command"] = command
    return {"services": {"model": service}}


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)


def _script(*commands: list[str]) -> str:
    lines = " \\\n".join
    return (
        "#!/bin/sh\nset -e\n"
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
