"""NVIDIA NIM 2: a compose file for the model-free container.

Its probes are those of NVIDIA's API reference of NIM LLM 2: ``/v1/health/ready`` answers once the
model is loaded. vLLM's key may guard it, as all below ``/v1``, so the probe sends the key.
"""

from __future__ import annotations

from gptoss_tune.export.serve.deployment import images
from gptoss_tune.export.serve.deployment.files import (
    VOCABULARY,
    VOCABULARY_VARIABLE,
)
from gptoss_tune.export.serve.deployment.places import BUNDLE_MOUNT
from gptoss_tune.export.serve.served import KEYS, MODEL_MOUNT, Served
from gptoss_tune.export.serve.texts import compose_value, mounted, required, yaml_text
from gptoss_tune.export.serve.vllm import vllm_arguments


def nim(served: Served) -> dict[str, str]:
    """Return a compose file for the model-free NIM container, which serves any local model.

    NIM 2 takes the folder in ``NIM_MODEL_PATH`` and the engine's own arguments as the command; the
    variables of NIM 1 for name, length and GPUs are gone.
    """
    image = served.image or images.NIM.reference
    model = f"{MODEL_MOUNT}/{served.name}"
    command = vllm_arguments(served, model)[1:]  # the model's path is a variable here
    compose = compose_value(
        served,
        image,
        command,
        environment={
            KEYS["nim"]: required(KEYS["nim"]),
            "NIM_MODEL_PATH": model,
            VOCABULARY_VARIABLE: f"{BUNDLE_MOUNT}/{VOCABULARY}",
        },
        volumes=[mounted(f"./{VOCABULARY}", f"{BUNDLE_MOUNT}/{VOCABULARY}")],
        health="/v1/health/ready",
        health_key=KEYS["nim"],
    )
    return {"compose.yaml": yaml_text(compose)}
