"""vLLM: a start script, and a compose file for a merged model."""

from __future__ import annotations

import json

from gptoss_tune.export.serve.served import KEYS, MODEL_MOUNT, PORT, Served, local
from gptoss_tune.export.serve.texts import compose_value, required, script, yaml_text


def vllm_arguments(served: Served, model: str) -> list[str]:
    """Return the arguments after ``vllm serve`` that say what is served, not where."""
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


def vllm(served: Served) -> dict[str, str]:
    """Return a start script, and a compose file for a merged model."""
    command = ["vllm", "serve", *vllm_arguments(served, local(served))]
    key = KEYS["vllm"] if served.open_to_others else None  # vLLM reads the variable itself
    command += ["--host", served.host, "--port", str(PORT)]
    files = {"serve.sh": script(command, needed=key)}
    if served.adapter is None:
        command = vllm_arguments(served, f"{MODEL_MOUNT}/{served.name}")
        compose = compose_value(served, "vllm/vllm-openai:latest", command)
        if key:
            compose["services"]["model"]["environment"] = {key: required(key)}
        files["compose.yaml"] = yaml_text(compose)
    return files
