"""``gptoss-tune demo``: the main job on an embedded tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptoss_tune.cli.arguments import ExpertFormat


def demo(
    changes: Annotated[
        list[str] | None,
        typer.Argument(help="key=value for its recipe: train.max_steps=20 shows the way sooner."),
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="Where to work; what an earlier demo left there is replaced.")
    ] = Path("runs/demo"),
) -> None:
    """Tune, merge and reload a tiny random gpt-oss on this machine's CPU, in a minute or two."""
    from rich.console import Console

    console = Console()
    # Said before the libraries are imported, which takes a second or two.
    console.print(f"tune, merge and reload a tiny gpt-oss in {folder}, on this CPU")
    from gptoss_tune.train.entrypoint import starting

    with starting():
        from gptoss_tune.workflows.demo import run_demo

    if not run_demo(folder, console, changes or ()):
        typer.echo("the demo did not reach its marks (see the table above)", err=True)
        raise typer.Exit(1)


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
