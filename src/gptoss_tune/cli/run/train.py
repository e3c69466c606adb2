"""``gptoss-tune train``: the same run as ``accelerate launch -m gptoss_tune.train``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import Overrides, RecipePath, renamed_option
from gptoss_tune.shipped import shipped

if TYPE_CHECKING:
    from gptoss_tune.recipe.schema import DistributedSection


def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    allow_change: Annotated[
        list[str] | None,
        typer.Option(
            help="Continue a run although this differs from it, such as train.learning_rate."
        ),
    ] = None,
    _: Annotated[list[str] | None, renamed_option("--allow-drift", "--allow-change")] = None,
) -> None:
    """Train a recipe here, or print the accelerate command when it asks for more processes."""
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.train.metrics.installed import refuse_missing_tracker

    loaded = load_recipe(recipe, overrides or ())
    refuse_missing_tracker(loaded.tracking)
    processes = loaded.distributed.num_processes
    if processes > 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        typer.echo(f"# {processes} processes: run this")
        words = [str(recipe), *(overrides or [])]
        typer.echo(accelerate_command(words, loaded.distributed, allow_change or []))
        return
    from gptoss_tune.train.entrypoint import starting

    with starting():
        from gptoss_tune.train.run import train as run

    typed = [str(recipe), *(overrides or [])]
    run(loaded, typed, allow_change=allow_change or ())


def accelerate_command(
    words: Sequence[str], distributed: DistributedSection, allow_change: Sequence[str] = ()
) -> str:
    """Return the command line that starts the processes of a run.

    Args:
        words: The recipe's path and the overrides.
        distributed: How many processes, and how they share the model.
        allow_change: As given to ``train``.
    """
    if distributed.strategy == "fsdp2":
        how = ["--config_file", str(shipped("recipes") / "accelerate" / "fsdp2.yaml")]
    else:
        how = ["--multi_gpu"]
    changes = [word for name in allow_change for word in ("--allow-change", name)]
    # Its ranks are started by `python -m`, which looks for modules in the current folder first.
    launch = [
        "PYTHONSAFEPATH=1",
        "accelerate",
        "launch",
        "--num_processes",
        str(distributed.num_processes),
        *how,
    ]
    return shlex.join([*launch, "-m", "gptoss_tune.train", *words, *changes])
