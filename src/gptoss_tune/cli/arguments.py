"""Arguments and options that several commands take, said once: the same word means the same.

Each is an annotated type; a command gives its default.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

RecipePath = Annotated[Path, typer.Argument(help="The recipe's YAML file.", show_default=False)]
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
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]


def renamed_option(old: str, new: str) -> Any:
    """Return an option that is not listed and refused by its new name."""

    def refuse(value: object) -> None:
        if value:
            raise typer.BadParameter(f"was renamed; write {new}", param_hint=old)

    return typer.Option(old, hidden=True, callback=refuse)


def _known_device(name: str) -> str:
    """Return the name of a device that this machine has, or refuse it."""
    if name == "cpu":
        return name
    match = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", name)
    if match is None:
        raise typer.BadParameter(f"'{name}' is no device; expected cpu, cuda or cuda:NUMBER")
    import torch

    found = torch.cuda.device_count()
    if int(match[1] or 0) >= found:
        there = f"cpu or cuda:0 to cuda:{found - 1}" if found else "cpu"
        raise typer.BadParameter(
            f"'{name}': this machine has {found} GPUs that torch can use; expected {there}"
        )
    return name


Device = Annotated[
    str, typer.Option("--device", callback=_known_device, help="Where to compute: cpu, cuda.")
]


class ExpertFormat(StrEnum):
    """How a checkpoint holds its experts."""

    mxfp4 = "mxfp4"
    bf16 = "bf16"
