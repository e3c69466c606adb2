"""NVIDIA NIM 2: a compose file for the model-free container."""

from __future__ import annotations

from gptoss_tune.export.serve.served import KEYS, MODEL_MOUNT, Served
from gptoss_tune.export.serve.texts import compose_value, required, yaml_text
from gptoss_tune.export.serve.vllm import vllm_arguments


def nim(served: Served) -> dict[str, str]:
    """Return a compose file for the model-free NIM container, which serves any local model.

    NIM 2 takes the folder in ``NIM_MODEL_PATH`` and the engine's own arguments as the command; the
    variables of NIM 1 for name, length and GPUs are gone.
    """
    image = required("NIM_LLM_IMAGE", "the model-free image of NIM 2, see the NGC catalog")
    model = f"{MODEL_MOUNT}/{served.name}"
    command = vllm_arguments(served, model)[1:]  # the model's path is a variable here
    if served.open_to_others:
        command += ["--api-key", required(KEYS["nim"])]
    compose = compose_value(served, image, command)
    compose["services"]["model"]["environment"] = {"NIM_MODEL_PATH": model}
    return {"compose.yaml": yaml_text(compose)}
