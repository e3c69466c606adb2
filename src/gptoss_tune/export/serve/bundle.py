"""A bundle of serving files for one target, written whole or not at all.

Each target is one function from the facts of a model to ``{file name: text}``. Only what a target's
public schema or argument parser names is written; a version that only the user can choose is a
variable without which the bundle does not start. A target that cannot serve an adapter of gpt-oss
says so instead of serving the base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.azure_ml import azure_ml
from gptoss_tune.export.serve.deployment.files import VOCABULARY_FILE, vocabulary_text
from gptoss_tune.export.serve.deployment.health import loading_s
from gptoss_tune.export.serve.deployment.images import (
    NIM,
    SGLANG,
    TENSORRT_LLM,
    TRITON,
    VLLM,
    Image,
)
from gptoss_tune.export.serve.deployment.readme import Described, readme
from gptoss_tune.export.serve.nim import nim
from gptoss_tune.export.serve.served import KEYS, LOOPBACK, Served, local
from gptoss_tune.export.serve.sglang import sglang
from gptoss_tune.export.serve.sizes.azure import instance_for
from gptoss_tune.export.serve.sizes.memory import USED_FRACTION, gib
from gptoss_tune.export.serve.tensorrt_llm import tensorrt_llm
from gptoss_tune.export.serve.transformers import transformers
from gptoss_tune.export.serve.triton_server import triton_server
from gptoss_tune.export.serve.vllm import vllm
from gptoss_tune.files.atomic import staged

TARGETS: Mapping[str, Callable[[Served], dict[str, str]]] = {
    "vllm": vllm,
    "sglang": sglang,
    "transformers": transformers,
    "triton-server": triton_server,
    "tensorrt-llm": tensorrt_llm,
    "azure-ml": azure_ml,
    "nim": nim,
}
"""What can be written, by the name on the command line."""
IMAGES: Mapping[str, Image] = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "triton-server": TRITON,
    "tensorrt-llm": TENSORRT_LLM,
    "azure-ml": VLLM,
    "nim": NIM,
}
"""The pinned image of a target; the others have none."""
OF_HARMONY = {
    **dict.fromkeys(("vllm", "sglang", "tensorrt-llm", "nim"), ""),
    "azure-ml": "environment/",
}
"""Targets whose server renders with openai-harmony, and the folder that its vocabulary lies in."""


def notes(served: Served, target: str) -> list[str]:
    """Return what a user has to know or to set before a bundle starts, a sentence each."""
    found = []
    if target == "transformers":
        found.append(
            f"clients ask for the model as '{local(served)}': transformers takes no --name, "
            "--context or --gpus"
        )
    image = IMAGES.get(target)
    if image:
        found.append(
            f"image {served.image}, as asked; its flags were not checked"
            if served.image
            else f"image {image.reference} ({image.server}); {image.flags}"
        )
    found += _sizes(served, target)
    key = KEYS.get(target)
    if key and served.open_to_others:
        found.append(f"others can reach {served.host}; clients need the key in {key}")
    elif key:
        found.append(f"containers need a key for clients in {key}")
    return found


def write_bundle(served: Served, target: str, out: Path) -> list[str]:
    """Write the files of one target to the new folder ``out`` and return their names.

    Raises:
        CheckpointError: The target cannot serve this model, or ``out`` exists.
    """
    files = bundle_files(served, target)
    with staged(out) as folder:
        write_files(files, folder)
    return sorted(files)


def bundle_files(served: Served, target: str) -> dict[str, str]:
    """Return the files of one target by their names.

    Raises:
        CheckpointError: The target cannot serve this model.
    """
    if served.adapters and target != "vllm":
        raise CheckpointError(
            f"{', '.join(served.adapters.ranks)}: {target} is not known to serve expert adapters "
            "of gpt-oss; merge first: gptoss-tune merge RUN --format mxfp4 --out DIR"
        )
    if target == "azure-ml" and served.host != LOOPBACK:
        raise CheckpointError(
            f"--host is {served.host}; {target} gives the endpoint its address itself, leave it out"
        )
    if served.open_to_others and target not in KEYS:
        raise CheckpointError(
            f"--host {served.host} lets others reach a server that asks nobody for a key: {target} "
            "has none; leave --host out and put a proxy that checks keys before it"
        )
    if served.image and target not in IMAGES:
        raise CheckpointError(f"--image is {served.image}; {target} is started without an image")
    files = TARGETS[target](served)
    if target in OF_HARMONY:
        files[f"{OF_HARMONY[target]}{VOCABULARY_FILE}"] = vocabulary_text()
    files["README.md"] = readme(_described(served, target, files))
    return files


def write_files(files: Mapping[str, str], folder: Path) -> None:
    """Write texts by their names into ``folder``, scripts to be run."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if name.endswith(".sh"):
            path.chmod(0o755)


def _sizes(served: Served, target: str) -> list[str]:
    """Return what each GPU needs and where that fits, a sentence each."""
    found = []
    if target == "azure-ml":
        instance = instance_for(served.gpus, served.gpu, served.needed)
        found.append(f"{instance.name} has {instance.gpus} x {instance.gpu}")
    needed = served.needed
    if needed is None or target == "transformers":
        return found
    what = "weights and adapters" if served.adapters else "weights"
    found.append(
        f"each GPU holds {gib(needed.weights)} of {what} and {gib(needed.request)} for one "
        f"request of {served.context} tokens"
    )
    gpu = served.gpu
    if gpu is not None:
        count = needed.requests_in(gpu.memory_bytes)
        found.append(
            f"{USED_FRACTION:.0%} of {gpu.name}'s {gib(gpu.memory_bytes)} hold {count} such "
            f"request{'s' if count > 1 else ''} at once, before the server's own buffers"
        )
    return found


def _described(served: Served, target: str, files: Mapping[str, str]) -> Described:
    """Return what the bundle's README tells."""
    return Described(
        target=target,
        name=served.name,
        model=local(served),
        asked_as=_asked_as(served, target),
        context=served.context,
        gpus=served.gpus,
        key=KEYS.get(target),
        open_to_others=served.open_to_others,
        url=served.url,
        image=served.image,
        pinned=IMAGES.get(target),
        loading_s=loading_s(served.weights),
        sizes=_sizes(served, target),
        files=list(files),
        adapters=served.adapters,
    )


def _asked_as(served: Served, target: str) -> str:
    if served.adapters:
        return next(iter(served.adapters.ranks))
    return local(served) if target == "transformers" else served.name
