"""TensorRT-LLM: a compose file and Kubernetes objects for ``trtllm-serve``.

Its PyTorch backend loads a folder as the release lays it out, experts in MXFP4 or in bf16: read in
NVIDIA/TensorRT-LLM, ``modeling_gpt_oss.py``, ``load_hf_weights``; not tried here. ``trtllm-serve``
knows no key, so it listens on the loopback address alone, and names the model after its folder.
"""

from __future__ import annotations

from gptoss_tune.export.serve.deployment import images
from gptoss_tune.export.serve.deployment.files import (
    VOCABULARY,
    VOCABULARY_VARIABLE,
)
from gptoss_tune.export.serve.deployment.places import BUNDLE_MOUNT
from gptoss_tune.export.serve.served import LOOPBACK, MODEL_MOUNT, PORT, Served
from gptoss_tune.export.serve.texts import compose_value, mounted, workload, yaml_text


def tensorrt_llm(served: Served) -> dict[str, str]:
    """Return a compose file and Kubernetes objects."""
    command = [
        *("trtllm-serve", f"{MODEL_MOUNT}/{served.name}", "--backend", "pytorch"),
        *("--tp_size", str(served.gpus), "--max_seq_len", str(served.context)),
        *("--host", LOOPBACK, "--port", str(PORT)),
    ]
    image = served.image or images.TENSORRT_LLM.reference
    compose = compose_value(
        served,
        image,
        command,
        environment={VOCABULARY_VARIABLE: f"{BUNDLE_MOUNT}/{VOCABULARY}"},
        volumes=[mounted(f"./{VOCABULARY}", f"{BUNDLE_MOUNT}/{VOCABULARY}")],
        keyed=False,
    )
    return {
        "compose.yaml": yaml_text(compose),
        **workload(served, image, command, vocabulary=True),
    }
