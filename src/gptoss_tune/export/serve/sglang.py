"""SGLang: a start script, a compose file and Kubernetes objects.

What gpt-oss needs, read in SGLang 0.5.23: the parsers ``gpt-oss`` for thoughts and for calls.
Attention and expert kernels are chosen by the server for the GPU. Its key guards every path but
``/health``, ``/ready`` and ``/metrics``.
"""

from __future__ import annotations

from gptoss_tune.export.serve.deployment import images
from gptoss_tune.export.serve.deployment.files import (
    VOCABULARY,
    VOCABULARY_VARIABLE,
)
from gptoss_tune.export.serve.deployment.places import BUNDLE_MOUNT
from gptoss_tune.export.serve.served import EVERYWHERE, KEYS, MODEL_MOUNT, PORT, Served, local
from gptoss_tune.export.serve.texts import (
    compose_value,
    mounted,
    required,
    script,
    workload,
    yaml_text,
)

KEY = KEYS["sglang"]


def sglang_arguments(served: Served, model: str, host: str, key: str | None) -> list[str]:
    """Return the whole command; ``key`` is what stands after ``--api-key``."""
    return [
        *("python3", "-m", "sglang.launch_server", "--model-path", model),
        *("--served-model-name", served.name, "--context-length", str(served.context)),
        *("--tp-size", str(served.gpus), "--reasoning-parser", "gpt-oss"),
        *("--tool-call-parser", "gpt-oss", "--host", host, "--port", str(PORT)),
        *(("--api-key", key) if key else ()),
    ]


def sglang(served: Served) -> dict[str, str]:
    """Return a start script, a compose file and Kubernetes objects; containers have a key."""
    key = KEY if served.open_to_others else None
    start = script(
        sglang_arguments(served, local(served), served.host, "@KEY@" if key else None),
        needed=key,
        exports={VOCABULARY_VARIABLE: f"$HERE/{VOCABULARY}", "HF_HUB_OFFLINE": "1"},
        package="sglang",
    )
    image = served.image or images.SGLANG.reference
    model = f"{MODEL_MOUNT}/{served.name}"
    compose = compose_value(
        served,
        image,
        sglang_arguments(served, model, EVERYWHERE, required(KEY)),
        environment={VOCABULARY_VARIABLE: f"{BUNDLE_MOUNT}/{VOCABULARY}"},
        volumes=[mounted(f"./{VOCABULARY}", f"{BUNDLE_MOUNT}/{VOCABULARY}")],
    )
    arguments = sglang_arguments(served, model, EVERYWHERE, f"$({KEY})")
    return {
        "serve.sh": start.replace("@KEY@", f'"${KEY}"'),
        "compose.yaml": yaml_text(compose),
        **workload(served, image, arguments, key=KEY, vocabulary=True),
    }
