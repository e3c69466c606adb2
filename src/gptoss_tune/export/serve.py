"""Files and commands that serve a model: vLLM, SGLang, transformers, Triton, Azure ML, NIM.

Each target is one function from the facts of a model to ``{file name: text}``. Only what a target's
public schema names is written; a version that only the user can choose is a variable without which
the bundle does not start. What the parts of a bundle must agree on (GPUs and heads, GPUs and the
machine, context and model) is checked here, because servers find out after minutes of loading. A
target that cannot serve an adapter of gpt-oss says so instead of serving the base.

A server listens on this machine alone unless an address is given; then it wants a key.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.atomic import staged

_MODEL_MOUNT = "/models"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE = "0.0.0.0"  # inside a container, whose port is published where ``host`` says
_CONTEXT = 131_072  # of gpt-oss where a configuration does not say
_AZURE_INSTANCES = {
    1: "Standard_NC40ads_H100_v5",
    2: "Standard_NC80adis_H100_v5",
    4: "Standard_NC96ads_A100_v4",
    8: "Standard_ND96isr_H100_v5",
}
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
        host: Address that the server listens on.
        config: The model's ``config.json``.
    """

    name: str
    path: str
    context: int = 32_768
    gpus: int = 1
    adapter: tuple[Path, int] | None = None
    host: str = _LOOPBACK[0]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def open_to_others(self) -> bool:
        """Whether others than this machine can reach the server."""
        return self.host not in _LOOPBACK

    def __post_init__(self) -> None:
        """Refuse a name that a target would refuse, and what the model cannot do."""
        longest = self.config.get("max_position_embeddings", _CONTEXT)
        if self.context > longest:
            raise CheckpointError(
                f"--context is {self.context}; the model reads at most {longest} tokens"
            )
        heads = self.config.get("num_attention_heads", 64)
        shared = self.config.get("num_key_value_heads", 8)
        fitting = [n for n in range(1, heads + 1) if _divides(n, heads, shared)]
        if self.gpus not in fitting:
            raise CheckpointError(
                f"--gpus is {self.gpus}; each GPU takes the same number of the model's {heads} "
                f"attention heads and {shared} key-value heads: expected one of "
                f"{', '.join(map(str, fitting))}"
            )
        if not re.fullmatch(r"[\w.:-]+", self.host, re.ASCII):
            raise CheckpointError(f"--host is '{self.host}'; expected an address such as 0.0.0.0")
        if not _SAFE_NAME.fullmatch(self.name):
            raise CheckpointError(
                f"--name is '{self.name}'; expected 3 to 32 letters, digits and dashes, a letter "
                "first: endpoints and model repositories use it"
            )


def _divides(gpus: int, heads: int, key_value_heads: int) -> bool:
    """Return whether heads divide evenly over GPUs; few key-value heads are copied to several."""
    return heads % gpus == 0 and (key_value_heads % gpus == 0 or gpus % key_value_heads == 0)


def notes(served: Served, target: str) -> list[str]:
    """Return what a user has to know or to set before a bundle starts, a sentence each."""
    found = {
        "triton-server": ["set TRITON_VERSION to a release with a vLLM image, such as 25.08"],
        "nim": [
            "set NIM_LLM_IMAGE to the model-free image of NIM 2 for LLMs, from the NGC catalog"
        ],
        "transformers": [
            f"clients ask for the model as '{_local(served)}': transformers takes no --name, "
            "--context or --gpus"
        ],
        "azure-ml": [
            "the Dockerfile takes vllm/vllm-openai:latest; write the release that you tested",
            f"the instance has {served.gpus} GPUs: {_AZURE_INSTANCES.get(served.gpus)}",
        ],
    }.get(target, ["the image's tag is latest; write the release that you tested"])
    if served.adapter is not None:
        found = []
    if served.open_to_others and target in _KEYS:
        found.append(f"others can reach {served.host}; clients need the key in {_KEYS[target]}")
    return found


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
    if served.open_to_others and target not in _KEYS and target != "azure-ml":
        raise CheckpointError(
            f"--host {served.host} lets others reach a server that asks nobody for a key: {target} "
            "has none; leave --host out and put a proxy that checks keys before it"
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


_KEYS = {"vllm": "VLLM_API_KEY", "sglang": "SGLANG_API_KEY", "nim": "VLLM_API_KEY"}
"""The variable that holds the key which clients must send, of the targets that know keys."""


def _vllm(served: Served) -> dict[str, str]:
    """Return a start script, and a compose file for a merged model."""
    command = ["vllm", "serve", *_vllm_arguments(served, _local(served))]
    key = _KEYS["vllm"] if served.open_to_others else None  # vLLM reads the variable itself
    command += ["--host", served.host, "--port", str(_PORT)]
    files = {"serve.sh": _script(command, needed=key)}
    if served.adapter is None:
        command = _vllm_arguments(served, f"{_MODEL_MOUNT}/{served.name}")
        compose = _compose_value(served, "vllm/vllm-openai:latest", command)
        if key:
            compose["services"]["model"]["environment"] = {key: _required(key)}
        files["compose.yaml"] = _yaml(compose)
    return files


def _sglang(served: Served) -> dict[str, str]:
    key = _KEYS["sglang"] if served.open_to_others else None

    def arguments(model: str, host: str, token: str) -> list[str]:
        return [
            *("python", "-m", "sglang.launch_server", "--model-path", model),
            *("--served-model-name", served.name, "--context-length", str(served.context)),
            *("--tp", str(served.gpus), "--reasoning-parser", "gpt-oss"),
            *("--tool-call-parser", "gpt-oss", "--host", host, "--port", str(_PORT)),
            *(("--api-key", token) if key else ()),
        ]

    script = _script(arguments(_local(served), served.host, "@KEY@"), needed=key)
    command = arguments(f"{_MODEL_MOUNT}/{served.name}", _EVERYWHERE, _required(key or ""))
    return {
        "serve.sh": script.replace("@KEY@", f'"${key}"'),
        "compose.yaml": _yaml(_compose_value(served, "lmsysorg/sglang:latest", command)),
    }


def _transformers(served: Served) -> dict[str, str]:
    command = ["transformers", "serve", _local(served), "--host", served.host]
    return {"serve.sh": _script([*command, "--port", str(_PORT), "--continuous-batching"])}


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
    version = _required("TRITON_VERSION", "a release with a vLLM image, such as 25.08")
    image = f"nvcr.io/nvidia/tritonserver:{version}-vllm-python-py3"
    compose = _compose_value(served, image, command)
    compose["services"]["model"]["volumes"].append("./model_repository:/repository:ro")
    compose["services"]["model"]["ports"] = [
        _published(served, port) for port in (8000, 8001, 8002)
    ]
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

    Raises:
        CheckpointError: No instance type has this number of GPUs.
    """
    if served.gpus not in _AZURE_INSTANCES:
        raise CheckpointError(
            f"--gpus is {served.gpus}; the instance types of Azure ML have "
            f"{', '.join(map(str, _AZURE_INSTANCES))}: choose one of these"
        )
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
        "instance_type": _AZURE_INSTANCES[served.gpus],
        "instance_count": 1,
        "request_settings": {
            "request_timeout_ms": 180_000,
            "max_concurrent_requests_per_instance": 64,
        },
        "liveness_probe": probe,
        "readiness_probe": probe,
    }
    command = ["vllm", "serve", *_vllm_arguments(served, model)]
    # Only the endpoint reaches the container; it asks clients for the key (auth_mode).
    command += ["--host", _EVERYWHERE, "--port", str(_PORT)]
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
    """Return a compose file for the model-free NIM container, which serves any local model.

    NIM 2 takes the folder in ``NIM_MODEL_PATH`` and the engine's own arguments as the command; the
    variables of NIM 1 for name, length and GPUs are gone.
    """
    image = _required("NIM_LLM_IMAGE", "the model-free image of NIM 2, see the NGC catalog")
    model = f"{_MODEL_MOUNT}/{served.name}"
    command = _vllm_arguments(served, model)[1:]  # the model's path is a variable here
    if served.open_to_others:
        command += ["--api-key", _required(_KEYS["nim"])]
    compose = _compose_value(served, image, command)
    compose["services"]["model"]["environment"] = {"NIM_MODEL_PATH": model}
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


def _required(name: str, what: str = "the key that clients must send") -> str:
    """Return a variable of a compose file without which nothing starts."""
    return f"${{{name}:?{what}}}"


def _published(served: Served, port: int) -> str:
    """Return the port of a container as compose publishes it: on this machine, or on ``host``."""
    host = f"[{served.host}]" if ":" in served.host else served.host
    host = _LOOPBACK[0] if host == "localhost" else host
    return f"{host}:{port}:{port}"


def _compose_value(served: Served, image: str, command: list[str]) -> dict[str, Any]:
    """Return a compose file with one service on all GPUs, the model mounted read-only."""
    service: dict[str, Any] = {
        "image": image,
        "ports": [_published(served, _PORT)],
        "volumes": [f"{_local(served)}:{_MODEL_MOUNT}/{served.name}:ro"],
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


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True)


def _script(*commands: list[str], needed: str | None = None) -> str:
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
