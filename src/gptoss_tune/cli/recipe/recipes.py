"""``gptoss-tune check | schema | recipes``: look at a recipe before anything expensive starts.

These commands import no torch, so a mistake in a recipe costs a keystroke. What ``check`` prints is
itself a recipe: each line that differs from the default says so in a comment, which survives a pipe
where colour does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import Overrides, RecipePath

if TYPE_CHECKING:
    from gptoss_tune.recipe import ResolvedLine

_WIDEST_NOTED_LINE = 44


def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, mistakes included.")
    ] = False,
) -> None:
    """Print a recipe with every default filled in, or every mistake in it.

    Exit code 0 for a sound recipe, 2 for one with mistakes.

    Paths in a recipe are relative to the current directory.
    """
    from gptoss_tune.plan.strategy import refuse_unspreadable
    from gptoss_tune.preflight.unusual import unusual_settings
    from gptoss_tune.recipe import RecipeMistakes, load_recipe, resolved_lines
    from gptoss_tune.workflows.sweep import first_run

    words, runs = first_run(overrides or [])
    try:
        resolved = load_recipe(recipe, words)
        for run in runs[1:]:
            load_recipe(recipe, run.overrides)
        refuse_unspreadable(str(recipe), resolved.model, resolved.train, resolved.distributed)
    except RecipeMistakes as error:
        if not as_json:
            raise
        mistakes = [mistake.as_json() for mistake in error.mistakes]
        typer.echo(json.dumps({"ok": False, "mistakes": mistakes}, indent=2))
        raise typer.Exit(error.exit_code) from None
    lines = list(resolved_lines(resolved))
    unusual = unusual_settings(
        resolved.model, resolved.lora, resolved.method, resolved.data, resolved.train
    )
    if as_json:
        changed = [line.setting for line in lines if line.note]
        body = {"ok": True, "recipe": resolved.model_dump(mode="json"), "changed": changed}
        body["warnings"] = unusual
        if runs:
            body["sweep"] = [run.values for run in runs]
        typer.echo(json.dumps(body, indent=2))
        return
    for line in unusual:
        typer.echo(f"warning: {line}", err=True)
    _print_resolved(lines, str(recipe), len(overrides or []))
    if runs:
        typer.echo(f"# the first of {len(runs)} runs: {'; '.join(map(str, runs))}")


def _print_resolved(lines: list[ResolvedLine], name: str, overrides: int) -> None:
    """Print the resolved recipe as YAML, changed lines bold and with their default beside them."""
    from rich.console import Console
    from rich.text import Text

    widest = max(len(line.text) for line in lines if line.note)
    column = min(widest, _WIDEST_NOTED_LINE)
    console = Console(highlight=False, soft_wrap=True)
    over = "" if not overrides else f" with {overrides} override{'s' if overrides > 1 else ''}"
    console.print(Text(f"# {name}{over}: sound", style="green"))
    styles = {"section": "bold cyan", "default": "dim", "changed": "bold"}
    for line in lines:
        text = Text(line.text, style=styles[line.kind])
        if line.note:
            text.pad_right(column - len(line.text))
            text.append(f"  # {line.note}", style="not bold yellow")
        console.print(text)


def schema() -> None:
    """Print the JSON Schema of recipes, for editors: completion, ranges and documentation."""
    from gptoss_tune.recipe import recipe_json_schema

    typer.echo(json.dumps(recipe_json_schema(), indent=2, ensure_ascii=False))


def recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List the shipped recipes and accelerate configurations, each with its first line."""
    from rich.console import Console
    from rich.text import Text

    from gptoss_tune.shipped import shipped

    folder = shipped("recipes")
    found: dict[str, list[tuple[str, str]]] = {"recipe": [], "accelerate": []}
    for path in sorted(folder.rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        kind = "accelerate" if path.parent.name == "accelerate" else "recipe"
        found[kind].append((_shortest(path), first.removeprefix("#").strip()))
    if as_json:
        listed = [
            {"kind": kind, "path": path, "description": text}
            for kind, entries in found.items()
            for path, text in entries
        ]
        typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    for kind, heading in (
        ("recipe", "Recipes: gptoss-tune check PATH, gptoss-tune train PATH"),
        ("accelerate", "For accelerate launch --config_file PATH -m gptoss_tune.train RECIPE"),
    ):
        console.print(Text(heading, style="bold cyan"))
        for path, text in found[kind]:
            console.print(Text.assemble("  ", (path, "bold"), f"\n    {text}"))


def _shortest(path: Path) -> str:
    """Return a path relative to the current directory where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
