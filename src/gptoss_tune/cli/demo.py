"""``gptoss-tune demo``: the main job on an embedded tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
    from gptoss_tune.train.entrypoint import hush_libraries

    hush_libraries()
    from gptoss_tune.demo import run_demo

    if not run_demo(folder, console, changes or ()):
        typer.echo("the demo did not reach its marks (see the table above)", err=True)
        raise typer.Exit(1)
