"""A GGUF to run, and what its files must agree on; checked by the header alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.deployment.addresses import LOOPBACK, is_address, is_loopback
from gptoss_tune.export.serve.deployment.images import image_mistake
from gptoss_tune.weights.gguf.file import ARCHITECTURE, open_gguf, refuse_no_model

_LONGEST = f"{ARCHITECTURE}.context_length"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")


@dataclass(frozen=True)
class LaptopModel:
    """A GGUF to run.

    Attributes:
        name: The name under which it is asked for.
        files: Absolute paths of its files, in order.
        context: Longest prompt and answer together, in tokens.
        host: Address that a server listens on.
        instructions: Developer instructions of every conversation, if any.
        effort: Reasoning effort that a request gets unless it says another.
        trained: Whether a record beside the file says that its run was trained at it.
        image: Image with tag or digest that replaces the pinned one of a container, or None.
        longest: Tokens that the model reads at most.
        nbytes: Bytes of the files.
    """

    name: str
    files: tuple[Path, ...]
    context: int
    host: str = LOOPBACK
    instructions: str | None = None
    effort: str = "medium"
    trained: bool = False
    image: str | None = None
    longest: int = 131_072
    nbytes: int = 0

    @property
    def open_to_others(self) -> bool:
        """Whether others than this machine can reach a server of it."""
        return not is_loopback(self.host)


def open_laptop_model(
    source: str, prompts: Mapping[str, str], name: str, context: int, **options: Any
) -> LaptopModel:
    """Return the GGUF that ``source`` means: a file, or a folder with one.

    Args:
        source: As it was given.
        prompts: How its run rendered its data, from ``prompts_trained_on``.
        name: The name under which it is asked for.
        context: Longest prompt and answer together, in tokens.
        options: Further attributes of ``LaptopModel``.

    Raises:
        CheckpointError: No GGUF, a damaged one, one of another architecture or of factors alone, or
            a name, context or address that cannot be.
    """
    opened = open_gguf(Path(source))
    refuse_no_model(source, opened)
    told = opened.keys.get(_LONGEST)
    longest = LaptopModel.longest if told is None else told.value
    if type(longest) is not int or longest < 1:
        raise CheckpointError(
            f"{source}: {_LONGEST} is {ascii(longest)[:60]}, expected a positive integer; write "
            "the file again: gptoss-tune merge RUN --format gguf --out DIR"
        )
    if context > longest:
        raise CheckpointError(f"--context is {context}; the model reads at most {longest} tokens")
    if not _NAME.fullmatch(name):
        raise CheckpointError(
            f"--name is '{name}'; expected 3 to 32 letters, digits and dashes, a letter first"
        )
    model = LaptopModel(
        name,
        tuple(file.path.resolve() for file in opened.files),
        context,
        effort=prompts.get("reasoning_effort", LaptopModel.effort),
        trained="reasoning_effort" in prompts,
        longest=longest,
        nbytes=sum(file.path.stat().st_size for file in opened.files),
        **options,
    )
    if not is_address(model.host):
        raise CheckpointError(
            f"--host is '{model.host}'; expected an address such as 0.0.0.0 or ::1, or localhost"
        )
    if model.image is not None and (said := image_mistake(model.image)):
        raise CheckpointError(said)
    return model
