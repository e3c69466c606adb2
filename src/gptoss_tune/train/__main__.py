"""``accelerate launch -m gptoss_tune.train RECIPE [key=value ...] [--allow-change NAME ...]``."""

from __future__ import annotations

import sys

from gptoss_tune.errors import RecipeError, run_command
from gptoss_tune.recipe import load_recipe
from gptoss_tune.train.entrypoint import starting
from gptoss_tune.train.metrics.installed import refuse_missing_tracker

_USAGE = "accelerate launch -m gptoss_tune.train RECIPE [key=value ...] [--allow-change NAME ...]"


def main() -> None:
    """Check the recipe before anything heavy is imported, then train it."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    run_command(lambda: _train(arguments), debug="--debug" in sys.argv[1:])


def _train(arguments: list[str]) -> None:
    arguments, allow_change = _without_changes(arguments)
    if not arguments:
        raise RecipeError(f"no recipe was given; usage: {_USAGE}")
    recipe = load_recipe(arguments[0], arguments[1:])
    refuse_missing_tracker(recipe.tracking)
    with starting():
        from gptoss_tune.train.run import train

    train(recipe, arguments, allow_change=allow_change)


def _without_changes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without ``--allow-change NAME`` (or ``=NAME``), and the names."""
    rest, names, waiting = [], [], iter(arguments)
    for argument in waiting:
        option, equals, name = argument.partition("=")
        if option == "--allow-drift":
            raise RecipeError("--allow-drift: was renamed; write --allow-change")
        if option != "--allow-change":
            rest.append(argument)
            continue
        name = name if equals else next(waiting, "")
        if not name:
            raise RecipeError(f"--allow-change: no name follows; usage: {_USAGE}")
        names.append(name)
    return rest, names


if __name__ == "__main__":
    main()
