"""A bundle for a GGUF on one machine, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.laptop.llama_cpp import CHECKED, IMAGE, KEY, PORT, llama_cpp
from gptoss_tune.export.serve.laptop.lm_studio import NOT_RUN as NOT_RUN_LM_STUDIO
from gptoss_tune.export.serve.laptop.lm_studio import PUBLISHER, lm_studio
from gptoss_tune.export.serve.laptop.model import LaptopModel
from gptoss_tune.export.serve.laptop.ollama import NOT_RUN as NOT_RUN_OLLAMA
from gptoss_tune.export.serve.laptop.ollama import TOOLS, ollama
from gptoss_tune.files.atomic import staged

LAPTOP_TARGETS: Mapping[str, Callable[[LaptopModel], dict[str, str]]] = {
    "ollama": ollama,
    "lm-studio": lm_studio,
    "llama.cpp": llama_cpp,
}
"""What runs a GGUF, by the name on the command line."""


def laptop_notes(model: LaptopModel, target: str) -> list[str]:
    """Return what a user has to know of a bundle, a sentence each."""
    asked = f"unless a request says another effort it reasons at {model.effort}" + (
        ", as its run was trained" if model.trained else ""
    )
    if target == "ollama":
        return [
            f"create.sh copies {model.nbytes / 1e9:.1f} GB into Ollama's store; {asked}",
            f"{NOT_RUN_OLLAMA}; {TOOLS}",
        ]
    if target == "lm-studio":
        return [
            f"place.sh links the model to models/{PUBLISHER}/{model.name}; set the context of "
            f"{model.context} tokens in the app",
            NOT_RUN_LM_STUDIO,
        ]
    found = [
        f"serve.sh listens on {model.host}:{PORT}; {asked}",
        f"image {model.image}, as asked; its flags were not checked"
        if model.image
        else f"image {IMAGE}; {CHECKED}",
        f"the container needs a key for clients in {KEY}",
    ]
    if model.open_to_others:
        found.append(f"others can reach {model.host}; clients need the key in {KEY}")
    return found


def write_laptop_bundle(model: LaptopModel, target: str, out: Path) -> list[str]:
    """Write the files of one target to the new folder ``out`` and return their names.

    Raises:
        CheckpointError: ``out`` exists, or an option means nothing to the target.
    """
    if model.open_to_others and target != "llama.cpp":
        raise CheckpointError(
            f"--host is {model.host}; {target} chooses its address itself, leave it out"
        )
    if model.image is not None and target != "llama.cpp":
        raise CheckpointError(f"--image is {model.image}; {target} runs in none, leave it out")
    if model.instructions is not None and target != "ollama":
        raise CheckpointError(
            f"--instructions: {target} has no file for them; send them with each conversation"
        )
    files = LAPTOP_TARGETS[target](model)
    with staged(out) as folder:
        for name, text in files.items():
            path = folder / name
            path.write_text(text, encoding="utf-8")
            if name.endswith(".sh"):
                path.chmod(0o755)
    return sorted(files)
