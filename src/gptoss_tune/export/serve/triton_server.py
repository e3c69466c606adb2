"""Triton Inference Server: a model repository with the vLLM backend.

See triton-inference-server/vllm_backend: ``1/model.json`` is handed to vLLM's ``AsyncEngineArgs``
as it stands. The backend takes text and gives text: whoever asks renders the conversation.
Triton knows no keys and listens on the loopback address alone.
"""

from __future__ import annotations

import json

from gptoss_tune.export.serve.deployment import images
from gptoss_tune.export.serve.served import LOOPBACK, MODEL_MOUNT, Served
from gptoss_tune.export.serve.texts import compose_value, mounted, workload, yaml_text

REPOSITORY = "/repository"
READY = "/v2/health/ready"


def triton_server(served: Served) -> dict[str, str]:
    """Return a model repository with the vLLM backend, a compose file and Kubernetes objects."""
    engine = {
        "model": f"{MODEL_MOUNT}/{served.name}",
        "served_model_name": served.name,
        "max_model_len": served.context,
        "tensor_parallel_size": served.gpus,
    }
    config = (
        f'name: "{served.name}"\n'
        'backend: "vllm"\n'
        "# The engine itself places the model on the GPUs.\n"
        "instance_group [ { count: 1 kind: KIND_MODEL } ]\n"
        "model_transaction_policy { decoupled: true }\n"
    )
    described = {
        f"{served.name}/1/model.json": json.dumps(engine, indent=2) + "\n",
        f"{served.name}/config.pbtxt": config,
    }
    command = ["tritonserver", f"--model-repository={REPOSITORY}"]
    command += [f"--{part}-address={LOOPBACK}" for part in ("http", "grpc", "metrics")]
    image = served.image or images.TRITON.reference
    compose = compose_value(
        served,
        image,
        command,
        volumes=[mounted("./model_repository", REPOSITORY)],
        health=READY,
        keyed=False,
    )
    objects = workload(
        served,
        image,
        command,
        ready=READY,
        live="/v2/health/live",
        small_files=described,
        small_files_mount=REPOSITORY,
    )
    return {
        **{f"model_repository/{name}": text for name, text in described.items()},
        "compose.yaml": yaml_text(compose),
        **objects,
    }
