"""``gptoss-tune train``: the same run as ``accelerate launch -m gptoss_tune.train``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gptoss_tune.cli.arguments import Overrides, RecipePath


def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    allow_drift: Annotated[
        list[str] | None,
        typer.Option(
            help="Continue a run although this differs from it, such as train.learning_rate."
        ),
    ] = None,
) -> None:
    """Train a recipe here, or print the accelerate command when it asks for more processes."""
    from gptoss_tune.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    processes = loaded.world.processes
    if processes > 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        typer.echo(f"# {processes} processes: run this")
        typer.echo(accelerate_command(recipe, overrides or [], processes, allow_drift or []))
        return
    from gptoss_tune.train.starting import starting

    with starting():
        from gptoss_tune.train.hush import hush_libraries

        hush_libraries()
        from gptoss_tune.train.run import train as run

    typed = [str(recipe), *(overrides or [])]
    run(loaded, typed, allow_drift=allow_drift or ())


def accelerate_command(
    recipe: Path, overrides: list[str], processes: int, allow_drift: Sequence[str] = ()
) -> str:
    """Return the command line that starts ``processes`` processes of the run."""
    words = ["accelerate", "launch", "--num_processes", str(processes)]
    if processes > 1:
        words.append("--multi_gpu")
    drift = [word for name in allow_drift for word in ("--allow-drift", name)]
    return shlex.join([*words, "-m", "gptoss_tune.train", str(recipe), *overrides, *drift])
