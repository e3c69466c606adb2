"""README.md of a bundle for a GGUF: what to set, how to start, to ask and to verify."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from gptoss_tune.export.serve.laptop.model import LaptopModel


@dataclass(frozen=True)
class Told:
    """What the README of one program says besides what all say.

    Attributes:
        program: Its name.
        settings: What can or has to be set, a sentence each.
        start: How it is started, as Markdown.
        url: Where its OpenAI API listens.
        asked_as: The name of the model there.
        key: The variable of the key that it wants, in a container at least, or None.
        checked: What was checked and what was not, a sentence each.
    """

    program: str
    settings: Sequence[str]
    start: Sequence[str]
    url: str
    asked_as: str
    key: str | None
    checked: Sequence[str]


def laptop_readme(model: LaptopModel, told: Told) -> str:
    """Return a bundle's README.md."""
    effort = f"A request that names no effort is answered at `{model.effort}`" + (
        ", as its run was trained." if model.trained else "."
    )
    sections = {
        "Set": _listed(told.settings),
        "Start": told.start,
        "Ask": [*_ask(told), "", *([] if told.program == "LM Studio" else [effort])],
        "Verify": _verify(model, told),
        "Checked": _listed(told.checked),
    }
    first = (
        f"# {model.name} on {told.program}\n\nModel: `{model.files[0]}`, "
        f"{model.nbytes / 1e9:.1f} GB, up to {model.context} tokens.\n"
    )
    texts = {title: "\n".join(lines).strip() for title, lines in sections.items()}
    return "\n".join([first, *(f"## {title}\n\n{text}\n" for title, text in texts.items())])


def code(*lines: str) -> str:
    """Return commands of a shell as Markdown."""
    return "\n".join(("```bash", *lines, "```"))


def _listed(sentences: Sequence[str]) -> list[str]:
    return [f"- {sentence[0].upper()}{sentence[1:]}." for sentence in sentences]


def _ask(told: Told) -> list[str]:
    body = f'{{"model": "{told.asked_as}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    # An argument would show the key in lists of processes.
    key = f"printf 'Authorization: Bearer %s' \"${told.key}\" | " if told.key else ""
    return [
        code(
            f"{key}curl {told.url}/v1/chat/completions \\",
            *(["  -H @- \\"] if key else []),
            "  -H 'Content-Type: application/json' \\",
            f"  -d {shlex.quote(body)}",
        )
    ]


def _verify(model: LaptopModel, told: Told) -> list[str]:
    """Return how file and server are verified; a server is compared with a safetensors folder."""
    file = shlex.quote(str(model.files[0] if len(model.files) == 1 else model.files[0].parent))
    lines = [
        "The file, tensor by tensor; RUN is the run that was merged:",
        "",
        code(f"gptoss-tune verify {file} --adapter RUN"),
        "",
    ]
    if told.program != "llama.cpp":
        return [*lines, f"`gptoss-tune verify --served` was not tried with {told.program}."]
    asked = (
        f"gptoss-tune verify MERGED --adapter RUN --served {told.url} --served-name {told.asked_as}"
    )
    commands = [f"{asked} --api-key-env {told.key}"]
    if not model.open_to_others:
        commands = ["# serve.sh, which asks for no key:", asked, "# the container:", *commands]
    return [
        *lines,
        "The server, by 24 questions; MERGED is the folder of the same merge that `gptoss-tune "
        "merge RUN --format mxfp4 --out MERGED` writes (`bf16` for a GGUF of `gguf-bf16`):",
        "",
        code(*commands),
    ]
