"""Triton Inference Server: a model repository with the vLLM backend."""

from __future__ import annotations

import json

from gptoss_tune.export.serve.served import MODEL_MOUNT, Served
from gptoss_tune.export.serve.texts import compose_value, published, required, yaml_text


def triton_server(served: Served) -> dict[str, str]:
    """Return a model repository with the vLLM backend.

    See triton-inference-server/vllm_backend: the engine's arguments stand in ``1/model.json``.
    """
    engine = {
        "model": f"{MODEL_MOUNT}/{served.name}",
        "served_model_name": served.name,
        "max_model_len": served.context,
        "tensor_parallel_size": served.gpus,
    }
    repository = f"model_repository/{served.name}"
    command = ["tritonserver", "--model-repository=/repository"]
    version = required("TRITON_VERSION", "a release with a vLLM image, such as 25.08")
    image = f"nvcr.io/nvidia/tritonserver:{version}-vllm-python-py3"
    compose = compose_value(served, image, command)
    compose["services"]["model"]["volumes"].append("./model_repository:/repository:ro")
    compose["services"]["model"]["ports"] = [published(served, port) for port in (8000, 8001, 8002)]
    return {
        f"{repository}/1/model.json": json.dumps(engine, indent=2) + "\n",
        f"{repository}/config.pbtxt": (
            f'name: "{served.name}"\n'
            'backend: "vllm"\n'
            "# The engine itself places the model on the GPUs.\n"
            "instance_group [ { count: 1 kind: KIND_MODEL } ]\n"
            "model_transaction_policy { decoupled: true }\n"
        ),
        "compose.yaml": yaml_text(compose),
    }
