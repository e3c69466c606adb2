"""Azure ML: a managed online endpoint whose container runs vLLM."""

from __future__ import annotations

import json
from pathlib import Path

from gptoss_tune.export.serve.deployment import images
from gptoss_tune.export.serve.deployment.files import (
    VOCABULARY,
    VOCABULARY_VARIABLE,
)
from gptoss_tune.export.serve.deployment.health import loading_s
from gptoss_tune.export.serve.deployment.places import BUNDLE_MOUNT
from gptoss_tune.export.serve.served import EVERYWHERE, MODEL_MOUNT, PORT, Served, local
from gptoss_tune.export.serve.sizes.azure import instance_for
from gptoss_tune.export.serve.texts import script, yaml_text
from gptoss_tune.export.serve.vllm import vllm_arguments

_SCHEMAS = "https://azuremlschemas.azureedge.net/latest"


def azure_ml(served: Served) -> dict[str, str]:
    """Return a managed online endpoint and its deployment for ``az ml``.

    See the YAML reference of Azure ML CLI v2, managedOnlineEndpoint and managedOnlineDeployment.

    Raises:
        CheckpointError: No instance type has these GPUs, or this much memory.
    """
    endpoint = {
        "$schema": f"{_SCHEMAS}/managedOnlineEndpoint.schema.json",
        "name": served.name,
        "auth_mode": "key",
    }
    return {
        "endpoint.yaml": yaml_text(endpoint),
        "deployment.yaml": yaml_text(_deployment(served)),
        "environment/Dockerfile": _dockerfile(served),
        "deploy.sh": script(
            ["az", "ml", "online-endpoint", "create", "--file", "endpoint.yaml"],
            [
                *("az", "ml", "online-deployment", "create", "--all-traffic"),
                *("--file", "deployment.yaml"),
            ],
            in_folder=True,
        ),
    }


def _deployment(served: Served) -> dict[str, object]:
    route = {"port": PORT, "path": "/health"}
    period = 30
    probe = {"period": period, "timeout": 10, "failure_threshold": 30}
    # A failed readiness probe waits; a failed liveness probe starts the container again.
    waited = loading_s(served.weights)
    return {
        "$schema": f"{_SCHEMAS}/managedOnlineDeployment.schema.json",
        "name": "blue",
        "endpoint_name": served.name,
        "model": {"name": served.name, "type": "custom_model", "path": local(served)},
        "model_mount_path": MODEL_MOUNT,
        "environment": {
            "name": f"{served.name}-vllm",
            "build": {"path": "environment"},
            "inference_config": {
                "liveness_route": route,
                "readiness_route": dict(route),
                "scoring_route": {"port": PORT, "path": "/"},
            },
        },
        "instance_type": instance_for(served.gpus, served.gpu, served.needed).name,
        "instance_count": 1,
        "request_settings": {
            "request_timeout_ms": 180_000,
            "max_concurrent_requests_per_instance": 64,
        },
        "liveness_probe": {"initial_delay": waited, **probe},
        "readiness_probe": {"initial_delay": 60, **probe, "failure_threshold": waited // period},
    }


def _dockerfile(served: Served) -> str:
    model = f"{MODEL_MOUNT}/{Path(served.path).name}"  # Azure mounts the folder under its own name
    command = ["vllm", "serve", *vllm_arguments(served, model)]
    # Only the endpoint reaches the container; it asks clients for the key (auth_mode).
    command += ["--host", EVERYWHERE, "--port", str(PORT)]
    return (
        f"FROM {served.image or images.VLLM.reference}\n"
        f"COPY {VOCABULARY} {BUNDLE_MOUNT}/{VOCABULARY}\n"
        f"ENV {VOCABULARY_VARIABLE}={BUNDLE_MOUNT}/{VOCABULARY} HF_HUB_OFFLINE=1\n"
        f"ENTRYPOINT {json.dumps(command)}\n"
    )
