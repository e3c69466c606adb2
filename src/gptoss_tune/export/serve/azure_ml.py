"""Azure ML: a managed online endpoint whose container runs vLLM."""

from __future__ import annotations

import json
from pathlib import Path

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.served import EVERYWHERE, MODEL_MOUNT, PORT, Served, local
from gptoss_tune.export.serve.texts import script, yaml_text
from gptoss_tune.export.serve.vllm import vllm_arguments

INSTANCES = {
    1: "Standard_NC40ads_H100_v5",
    2: "Standard_NC80adis_H100_v5",
    4: "Standard_NC96ads_A100_v4",
    8: "Standard_ND96isr_H100_v5",
}
"""Instance types by their GPUs."""


def azure_ml(served: Served) -> dict[str, str]:
    """Return a managed online endpoint and its deployment for ``az ml``.

    See the YAML reference of Azure ML CLI v2, managedOnlineEndpoint and managedOnlineDeployment.

    Raises:
        CheckpointError: No instance type has this number of GPUs.
    """
    if served.gpus not in INSTANCES:
        raise CheckpointError(
            f"--gpus is {served.gpus}; the instance types of Azure ML have "
            f"{', '.join(map(str, INSTANCES))}: choose one of these"
        )
    schemas = "https://azuremlschemas.azureedge.net/latest"
    endpoint = {
        "$schema": f"{schemas}/managedOnlineEndpoint.schema.json",
        "name": served.name,
        "auth_mode": "key",
    }
    route = {"port": PORT, "path": "/health"}
    model = f"{MODEL_MOUNT}/{Path(served.path).name}"
    probe = {"initial_delay": 600, "period": 30, "timeout": 10, "failure_threshold": 30}
    deployment = {
        "$schema": f"{schemas}/managedOnlineDeployment.schema.json",
        "name": "blue",
        "endpoint_name": served.name,
        "model": {"name": served.name, "type": "custom_model", "path": local(served)},
        "model_mount_path": MODEL_MOUNT,
        "environment": {
            "name": f"{served.name}-vllm",
            "build": {"path": "environment"},
            "inference_config": {
                "liveness_route": route,
                "readiness_route": route,
                "scoring_route": {"port": PORT, "path": "/"},
            },
        },
        "instance_type": INSTANCES[served.gpus],
        "instance_count": 1,
        "request_settings": {
            "request_timeout_ms": 180_000,
            "max_concurrent_requests_per_instance": 64,
        },
        "liveness_probe": probe,
        "readiness_probe": probe,
    }
    command = ["vllm", "serve", *vllm_arguments(served, model)]
    # Only the endpoint reaches the container; it asks clients for the key (auth_mode).
    command += ["--host", EVERYWHERE, "--port", str(PORT)]
    dockerfile = f"FROM vllm/vllm-openai:latest\nENTRYPOINT {json.dumps(command)}\n"
    return {
        "endpoint.yaml": yaml_text(endpoint),
        "deployment.yaml": yaml_text(deployment),
        "environment/Dockerfile": dockerfile,
        "deploy.sh": script(
            ["az", "ml", "online-endpoint", "create", "--file", "endpoint.yaml"],
            [
                *("az", "ml", "online-deployment", "create", "--all-traffic"),
                *("--file", "deployment.yaml"),
            ],
        ),
    }
