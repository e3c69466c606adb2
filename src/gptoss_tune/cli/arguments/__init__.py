"""Arguments and options that several commands take, said once: the same word means the same.

Each is an annotated type; a command gives its default.
"""

from __future__ import annotations

import contextlib
import math
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


def complete_recipe_names(incomplete: str) -> list[str]:
    """Return the names of shipped recipes that begin so, for a shell's completion."""
    from gptoss_tune.shipped import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    """Return what a recipe argument may become: files and folders here, and shipped names."""
    head, slash, _ = incomplete.rpartition("/")
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(Path(head + slash or ".").iterdir()):
            if path.is_dir() or path.suffix in (".yaml", ".yml"):
                found.append(f"{head}{slash}{path.name}{'/' if path.is_dir() else ''}")
    files = [name for name in found if name.startswith(incomplete)]
    return complete_recipe_names(incomplete) + (files if incomplete else [])


def complete_card(incomplete: str) -> list[str]:
    """Return the names of cards that begin so, for a shell's completion."""
    from gptoss_tune.plan.gpus import GPUS

    return [known.name for known in GPUS if known.name.startswith(incomplete.lower())]


RecipePath = Annotated[
    Path,
    typer.Argument(
        help="The recipe: a YAML file, or a shipped one's name, such as gpt-oss-20b/qlora.",
        autocompletion=complete_recipe,
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings laid over the recipe, such as train.max_steps=10.",
        show_default=False,
    ),
]
BasePath = Annotated[
    str | None, typer.Option("--base", help="The base checkpoint; default: the adapter's own.")
]
OtherBase = Annotated[
    bool, typer.Option("--other-base", help="Accept a base with other weights than trained on.")
]
Revision = Annotated[str | None, typer.Option("--revision", help="Revision of a base on the Hub.")]


def refuse_revision_of_nothing(base: str | None, revision: str | None) -> None:
    """Refuse ``--revision`` without ``--base``: the adapter's own base has the one it names.

    Raises:
        typer.BadParameter: With what to add.
    """
    if base is None and revision is not None:
        raise typer.BadParameter(
            f"'{revision}' of what? it needs --base NAME, whose revision it is",
            param_hint="--revision",
        )


AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def renamed_option(old: str, new: str) -> Any:
    """Return an option that is not listed and refused by its new name."""

    def refuse(value: object) -> None:
        if value:
            raise typer.BadParameter(f"was renamed; write {new}", param_hint=old)

    return typer.Option(old, hidden=True, callback=refuse)


def known_device(name: str | None) -> str | None:
    """Return the name of a device that this machine has, or refuse it."""
    if name not in (None, "cpu"):  # which need no torch to be known
        from gptoss_tune.export.device import compute_device

        compute_device(name)
    return name


Device = Annotated[
    str, typer.Option("--device", callback=known_device, help="Where to compute: cpu, cuda.")
]


class Effort(StrEnum):
    """How long the model should think."""

    low = "low"
    medium = "medium"
    high = "high"


class ExpertFormat(StrEnum):
    """How a checkpoint holds its experts."""

    mxfp4 = "mxfp4"
    bf16 = "bf16"


class MergeFormat(StrEnum):
    """What a merge writes: the layout of the experts, and in a GGUF or as safetensors."""

    bf16 = "bf16"
    mxfp4 = "mxfp4"
    gguf = "gguf"
    gguf_bf16 = "gguf-bf16"


def path_and_weight(text: str) -> tuple[str, float]:
    """Return an adapter and its weight of ``PATH`` or ``PATH=WEIGHT``.

    Raises:
        typer.BadParameter: The weight is no finite number, or 0.
    """
    path, separator, weight = text.rpartition("=")
    if not separator or Path(text).exists():
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        raise typer.BadParameter(
            f"'{text}': '{weight}' is no number; expected PATH=WEIGHT"
        ) from None
    if not math.isfinite(value) or value == 0:
        raise typer.BadParameter(
            f"'{text}': the weight is {value:g}; expected a number other than 0"
        )
    return path, value


def name_and_path(text: str) -> tuple[str | None, str]:
    """Return the name and the place of an adapter of ``PATH`` or ``NAME=PATH``."""
    name, separator, path = text.partition("=")
    if not separator or "/" in name or Path(text).expanduser().exists():
        return None, text
    return name, path


_UNITS = {"": 1, "B": 1, **{f"{u}B": 1000**n for n, u in enumerate("KMGT", 1)}}
_UNITS |= {f"{unit}IB": 1024**n for n, unit in enumerate("KMGT", 1)}


def size_in_bytes(text: str) -> int:
    """Return a size such as ``5GB``, ``500MB``, ``2GiB`` or ``5000000000`` in bytes.

    Raises:
        typer.BadParameter: It is no size above 0.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*)", text.strip())
    unit = match and _UNITS.get(match[2].upper())
    if not match or unit is None or int(float(match[1]) * unit) < 1:
        raise typer.BadParameter(
            f"{text!r}; expected a size above 0, such as 5GB, 500MB, 2GiB or a number of bytes",
            param_hint="--max-shard-size",
        )
    return int(float(match[1]) * unit)
