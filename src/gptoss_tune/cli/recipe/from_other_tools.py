"""``gptoss-tune convert`` of a file: a recipe from one of Axolotl, LLaMA-Factory or TRL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_tune.recipe.convert import Conversion

_FATES = (
    ("converted", "converted", "green"),
    ("none", "no counterpart, and what happens instead", "yellow"),
    ("irrelevant", "irrelevant here", "dim"),
)


def convert_recipe(
    source: Path,
    out: Path | None,
    model: str | None,
    gpus: int,
    dataset_info: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Write a recipe from another tool's file, and tell what became of each of its keys.

    Without ``out`` the recipe is printed, and the rest goes to stderr.
    """
    from rich.console import Console

    from gptoss_tune.errors import RecipeError
    from gptoss_tune.files.atomic import write_text
    from gptoss_tune.recipe.convert import Options
    from gptoss_tune.recipe.convert import convert as conversion_of

    if out is not None and out.exists() and not force:
        raise RecipeError(f"{out}: exists; give another --out, or --force to replace it")
    base = None
    if model is not None:
        from gptoss_tune.workflows.first_recipe.write import model_of

        base = model_of(model)
    info = None if dataset_info is None else str(dataset_info)
    made = conversion_of(source, Options(base, gpus, info))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, made.text)
    if as_json:
        keys = [outcome.as_json() for outcome in made.outcomes]
        typer.echo(json.dumps({"tool": made.tool, "recipe": made.text, "keys": keys}, indent=2))
        return
    if out is None:
        typer.echo(made.text, nl=False)
    _print(Console(highlight=False, soft_wrap=True, stderr=out is None), made, source, out)


def _print(console: Console, made: Conversion, source: Path, out: Path | None) -> None:
    from rich.text import Text

    from gptoss_tune.display import visible
    from gptoss_tune.terminal import next_commands

    counts = {fate: sum(one.fate == fate for one in made.outcomes) for fate, _, _ in _FATES}
    title = f"{source}: {made.tool}, {len(made.outcomes)} keys"
    console.print(Text(title, style="bold"))
    for fate, name, style in _FATES:
        if not counts[fate]:
            continue
        console.print(Text(f"{counts[fate]} {name}", style=f"bold {style}"))
        for one in made.outcomes:
            if one.fate == fate:
                value = f" {one.value}" if one.value else ""
                text = f"  {one.line:>3} {one.key}:{value} -> {one.text}"
                console.print(Text(visible(text), style=style))
    if out is not None:
        recipe = str(out)
        following = (
            (("gptoss-tune", "check", recipe), "every setting, defaults included"),
            (("gptoss-tune", "plan", recipe), "memory and time"),
            (("gptoss-tune", "preview", recipe), "what is trained, token by token"),
        )
        console.print(Text(f"{out}: written", style="bold"))
        console.print("\n".join(next_commands(following)))
