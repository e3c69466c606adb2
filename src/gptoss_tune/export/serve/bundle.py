"""A bundle of serving files for one target, written whole or not at all.

Each target is one function from the facts of a model to ``{file name: text}``. Only what a target's
public schema names is written; a version that only the user can choose is a variable without which
the bundle does not start. A target that cannot serve an adapter of gpt-oss says so instead of
serving the base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.azure_ml import INSTANCES, azure_ml
from gptoss_tune.export.serve.nim import nim
from gptoss_tune.export.serve.served import KEYS, Served, local
from gptoss_tune.export.serve.sglang import sglang
from gptoss_tune.export.serve.transformers import transformers
from gptoss_tune.export.serve.triton_server import triton_server
from gptoss_tune.export.serve.vllm import vllm
from gptoss_tune.files.atomic import staged

TARGETS: Mapping[str, Callable[[Served], dict[str, str]]] = {
    "vllm": vllm,
    "sglang": sglang,
    "transformers": transformers,
    "triton-server": triton_server,
    "azure-ml": azure_ml,
    "nim": nim,
}
"""What can be written, by the name on the command line."""


def notes(served: Served, target: str) -> list[str]:
    """Return what a user has to know or to set before a bundle starts, a sentence each."""
    found = {
        "triton-server": ["set TRITON_VERSION to a release with a vLLM image, such as 25.08"],
        "nim": [
            "set NIM_LLM_IMAGE to the model-free image of NIM 2 for LLMs, from the NGC catalog"
        ],
        "transformers": [
            f"clients ask for the model as '{local(served)}': transformers takes no --name, "
            "--context or --gpus"
        ],
        "azure-ml": [
            "the Dockerfile takes vllm/vllm-openai:latest; write the release that you tested",
            f"the instance has {served.gpus} GPUs: {INSTANCES.get(served.gpus)}",
        ],
    }.get(target, ["the image's tag is latest; write the release that you tested"])
    if served.adapter is not None:
        found = []
    if served.open_to_others and target in KEYS:
        found.append(f"others can reach {served.host}; clients need the key in {KEYS[target]}")
    return found


def write_bundle(served: Served, target: str, out: Path) -> list[str]:
    """Write the files of one target to the new folder ``out`` and return their names.

    Raises:
        CheckpointError: The target cannot serve this model, or ``out`` exists.
    """
    if served.adapter and target != "vllm":
        raise CheckpointError(
            f"{served.adapter[0]}: {target} is not known to serve expert adapters of gpt-oss; "
            "merge first: gptoss-tune merge RUN --format mxfp4 --out DIR"
        )
    if served.open_to_others and target not in KEYS and target != "azure-ml":
        raise CheckpointError(
            f"--host {served.host} lets others reach a server that asks nobody for a key: {target} "
            "has none; leave --host out and put a proxy that checks keys before it"
        )
    files = TARGETS[target](served)
    with staged(out) as folder:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if name.endswith(".sh"):
                path.chmod(0o755)
    return sorted(files)
