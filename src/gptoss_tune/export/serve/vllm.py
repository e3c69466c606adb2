"""vLLM: a start script, a compose file, and for a merged model Kubernetes objects.

What gpt-oss needs, read in vLLM 0.33.0: ``--reasoning-parser openai_gptoss`` parts thoughts from
answers, ``--tool-call-parser openai`` with ``--enable-auto-tool-choice`` finds calls; both end in
the Harmony parser. Its conversations are rendered by openai-harmony, which downloads its vocabulary
unless ``TIKTOKEN_ENCODINGS_BASE`` names a folder that has it: the bundle does.
"""

from __future__ import annotations

from pathlib import Path

from gptoss_tune.export.serve.deployment import images
from gptoss_tune.export.serve.deployment.files import (
    MIDDLEWARE,
    ONLY_V1,
    VOCABULARY,
    VOCABULARY_VARIABLE,
    middleware_text,
)
from gptoss_tune.export.serve.deployment.mounts import mounted_as_told
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

KEY = KEYS["vllm"]
ADAPTERS = "adapters"
"""Folder of the adapters in a bundle."""
_HUB_CACHE = ("${HF_HOME:-~/.cache/huggingface}", "/root/.cache/huggingface")


def vllm_arguments(served: Served, model: str, adapters: str = ADAPTERS) -> list[str]:
    """Return the arguments after ``vllm serve`` that say what is served, not where.

    Args:
        served: The model, or a base with its adapters.
        model: Its folder there, or its name on the Hub.
        adapters: The folder of its adapters there.
    """
    arguments = [
        model,
        "--served-model-name",
        served.name,
        "--max-model-len",
        str(served.context),
        "--tensor-parallel-size",
        str(served.gpus),
        "--reasoning-parser",
        "openai_gptoss",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "openai",
    ]
    if served.adapters:
        arguments += served.adapters.arguments(served.name, adapters)
    return arguments


def vllm(served: Served) -> dict[str, str]:
    """Return a start script, a compose file, and for a merged model Kubernetes objects.

    vLLM reads its key from the environment. Containers always have one, since their server has to
    listen on every address of theirs.
    """
    listening = ["--middleware", MIDDLEWARE, "--host", served.host, "--port", str(PORT)]
    command = ["vllm", "serve", *vllm_arguments(served, local(served)), *listening]
    exports = {
        VOCABULARY_VARIABLE: f"$HERE/{VOCABULARY}",
        "PYTHONPATH": "$HERE${PYTHONPATH:+:$PYTHONPATH}",
    }
    if Path(served.path).is_dir():
        exports["HF_HUB_OFFLINE"] = "1"
    needed = KEY if served.open_to_others else None
    files = {
        "serve.sh": script(
            command,
            needed=needed,
            exports=exports,
            package="vllm",
            in_folder=served.adapters is not None,
        ),
        ONLY_V1: middleware_text(),
    }
    return files | _containers(served)


def _containers(served: Served) -> dict[str, str]:
    """Return a compose file, and for a merged model Kubernetes objects."""
    here = Path(served.path).is_dir()
    model = f"{MODEL_MOUNT}/{served.name}" if here or not served.adapters else served.path
    image = served.image or images.VLLM.reference
    adapters = f"{BUNDLE_MOUNT}/{ADAPTERS}"
    arguments = [
        *vllm_arguments(served, model, adapters),
        *("--middleware", MIDDLEWARE, "--host", EVERYWHERE, "--port", str(PORT)),
    ]
    compose = compose_value(
        served,
        image,
        arguments,
        entrypoint=["vllm", "serve"],
        environment={
            KEY: required(KEY),
            VOCABULARY_VARIABLE: f"{BUNDLE_MOUNT}/{VOCABULARY}",
            "PYTHONPATH": BUNDLE_MOUNT,
            **({} if here or not served.adapters else {"HF_HUB_OFFLINE": "0"}),
        },
        volumes=[
            mounted(f"./{VOCABULARY}", f"{BUNDLE_MOUNT}/{VOCABULARY}"),
            mounted(f"./{ONLY_V1}", f"{BUNDLE_MOUNT}/{ONLY_V1}"),
            *([mounted(f"./{ADAPTERS}", adapters)] if served.adapters else []),
        ],
    )
    if served.adapters:
        if not here:  # a base on the Hub lies in its cache, under names that link to others
            compose["services"]["model"]["volumes"][0] = mounted_as_told(
                *_HUB_CACHE, read_only=False
            )
        return {"compose.yaml": yaml_text(compose)}
    objects = workload(
        served,
        image,
        arguments,
        command=["vllm", "serve"],
        key=KEY,
        vocabulary=True,
        small_files={ONLY_V1: middleware_text()},
    )
    return {"compose.yaml": yaml_text(compose), **objects}
