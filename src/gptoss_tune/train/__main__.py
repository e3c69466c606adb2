"""``accelerate launch -m gptoss_tune.train RECIPE [key=value ...] [options]``."""

from __future__ import annotations

import os
import sys

from gptoss_tune.errors import RecipeError, run_command
from gptoss_tune.preflight.training import look_before_training
from gptoss_tune.recipe import load_recipe
from gptoss_tune.recipe.load import places
from gptoss_tune.train.distributed.start_processes import CHECKED
from gptoss_tune.train.entrypoint import starting

_USAGE = (
    "accelerate launch -m gptoss_tune.train RECIPE [key=value ...] [--allow-change NAME ...] "
    "[--environment MODULE:CLASS]"
)


def main() -> None:
    """Check the recipe before anything heavy is imported, then train it."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    run_command(lambda: _train(arguments), debug="--debug" in sys.argv[1:])


def _train(arguments: list[str]) -> None:
    arguments, allow_change = _without_changes(arguments)
    arguments, environments = _without(arguments, "--environment")
    environment = environments[-1] if environments else None
    on_cpu = "--on-cpu" in arguments
    arguments = [argument for argument in arguments if argument != "--on-cpu"]
    if not arguments:
        raise RecipeError(f"no recipe was given; usage: {_USAGE}")
    recipe = load_recipe(arguments[0], arguments[1:])
    if CHECKED not in os.environ:
        unusual = look_before_training(
            arguments[0],
            recipe,
            places(arguments[0], arguments[1:]),
            allow_change=allow_change,
            launched="WORLD_SIZE" in os.environ,
            on_cpu=on_cpu,
            environment=environment,
        )
        if os.environ.get("RANK", "0") == "0":
            for line in unusual:
                sys.stderr.write(f"warning: {line}\n")
    with starting():
        from gptoss_tune.train.run import train

    train(recipe, arguments, allow_change=allow_change, environment=environment)


def _without_changes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without ``--allow-change NAME`` (or ``=NAME``), and the names."""
    if any(argument.partition("=")[0] == "--allow-drift" for argument in arguments):
        raise RecipeError("--allow-drift: was renamed; write --allow-change")
    return _without(arguments, "--allow-change")


def _without(arguments: list[str], wanted: str) -> tuple[list[str], list[str]]:
    """Return the arguments without an option, and what was given with it."""
    rest, names, waiting = [], [], iter(arguments)
    for argument in waiting:
        option, equals, name = argument.partition("=")
        if option != wanted:
            rest.append(argument)
            continue
        name = name if equals else next(waiting, "")
        if not name:
            raise RecipeError(f"{wanted}: no name follows; usage: {_USAGE}")
        names.append(name)
    return rest, names


if __name__ == "__main__":
    main()
