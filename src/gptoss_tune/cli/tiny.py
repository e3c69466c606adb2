"""``gptoss-tune tiny``: a small random gpt-oss to try things with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ExpertFormat(StrEnum):
    """How a checkpoint holds its experts."""

    mxfp4 = "mxfp4"
    bf16 = "bf16"


def tiny(
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    layers: Annotated[int, typer.Option(help="Decoder layers.")] = 4,
    experts: Annotated[int, typer.Option(help="Experts of each layer.")] = 8,
    hidden: Annotated[int, typer.Option(help="Hidden size, a multiple of 32.")] = 64,
    intermediate: Annotated[int, typer.Option(help="Expert size, a multiple of 32.")] = 96,
    format: Annotated[
        ExpertFormat, typer.Option(help="Layout of the experts.")
    ] = ExpertFormat.mxfp4,
) -> None:
    """Write a tiny random gpt-oss checkpoint with the real tokenizer and layout."""
    from gptoss_tune.testing.tiny import tiny_checkpoint

    tiny_checkpoint(
        out,
        seed=seed,
        layers=layers,
        experts=experts,
        hidden=hidden,
        intermediate=intermediate,
        format=format.value,
    )
    size = sum(file.stat().st_size for file in out.iterdir())
    typer.echo(f"{out}: {layers} layers, {experts} experts, {format.value}, {size / 1e6:.1f} MB")
