"""``accelerate launch -m gptoss_tune.train RECIPE [key=value ...]``."""

from __future__ import annotations

import sys

from gptoss_tune.errors import RecipeError, run_command
from gptoss_tune.recipe import load_recipe


def main() -> None:
    """Check the recipe before anything heavy is imported, then train it."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    run_command(lambda: _train(arguments), debug="--debug" in sys.argv[1:])


def _train(arguments: list[str]) -> None:
    if not arguments:
        raise RecipeError(
            "no recipe was given; "
            "usage: accelerate launch -m gptoss_tune.train RECIPE [key=value ...]"
        )
    recipe = load_recipe(arguments[0], arguments[1:])
    from gptoss_tune.train.hush import hush_libraries

    hush_libraries()
    from gptoss_tune.train.run import train

    train(recipe)


if __name__ == "__main__":
    main()
