"""``gptoss-tune train``: the run, in this process or in as many as the recipe asks for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import Overrides, RecipePath, renamed_option

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
    environment: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:CLASS",
            help="Class of your own that plays the episodes of method grpo; it is imported.",
        ),
    ] = None,
    on_cpu: Annotated[
        bool, typer.Option("--on-cpu", help="Train on this CPU although it takes days.")
    ] = False,
    most_runs: Annotated[
        int, typer.Option(min=1, help="Of a sweep, as train.learning_rate=[1e-4,2e-4] is one.")
    ] = 12,
    _: Annotated[list[str] | None, renamed_option("--allow-drift", "--allow-change")] = None,
) -> None:
    """Train a recipe, in as many processes as it asks for; KEY=[A,B] trains one run for each.

    Exit code: 0 done, 2 your input, 3 the machine, 75 stopped: the same command goes on.
    """
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.preflight.training import look_before_training
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.recipe.load import places
    from gptoss_tune.workflows.sweep import sweep_runs

    runs = sweep_runs(overrides or ())
    if runs:
        if environment is not None:
            raise RecipeError(
                "--environment: got it with a sweep, expected it with one run; start the runs one "
                "by one"
            )
        from gptoss_tune.cli.run.sweep import train_sweep

        changes = allow_change or []
        raise typer.Exit(
            train_sweep(str(recipe), runs, most=most_runs, allow_change=changes, on_cpu=on_cpu)
        )
    loaded = load_recipe(recipe, overrides or ())
    typed = [str(recipe), *(overrides or [])]
    launched, changes = "WORLD_SIZE" in os.environ, allow_change or []
    where = places(recipe, overrides or ())
    for line in look_before_training(
        str(recipe),
        loaded,
        where,
        allow_change=changes,
        launched=launched,
        on_cpu=on_cpu,
        environment=environment,
    ):
        typer.echo(f"warning: {line}", err=True)
    if loaded.distributed.num_processes > 1 and not launched:
        raise typer.Exit(_launch(typed, loaded.distributed, changes, environment))
    from gptoss_tune.train.entrypoint import starting

    with starting():
        from gptoss_tune.train.run import train as run

    run(loaded, typed, allow_change=changes, environment=environment)


def _launch(
    typed: list[str],
    distributed: DistributedSection,
    allow_change: list[str],
    environment: str | None,
) -> int:
    """Start the recipe's processes on this machine and return the exit code of the run."""
    from gptoss_tune.plan.gpus import detected_gpus
    from gptoss_tune.train.distributed.start_processes import (
        accelerate_arguments,
        first_word,
        launch_ranks,
        threads_of_a_process,
    )
    from gptoss_tune.train.entrypoint import starting

    first_word(distributed)
    with starting():
        import accelerate.commands.launch  # noqa: F401 - it takes seconds, and a signal may come
    threads = threads_of_a_process(distributed.num_processes, gpus=len(detected_gpus()))
    return launch_ranks(
        accelerate_arguments(typed, distributed, allow_change, environment), threads=threads
    )
