"""``gptoss-tune check | schema | recipes``: look at a recipe before anything expensive starts.

These commands import no torch, so a mistake in a recipe costs a keystroke. What ``check`` prints is
itself a recipe: each line that differs from the default says so in a comment, which survives a pipe
where colour does not.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import Overrides, RecipePath, complete_recipe_names

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
    copy: Annotated[
        str | None,
        typer.Option(
            "--copy",
            metavar="NAME",
            help="Write this recipe here, to be edited, such as gpt-oss-20b/qlora.",
            autocompletion=complete_recipe_names,
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where --copy writes; default: after the name.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the shipped recipes and accelerate configurations, or copy one here.

    Every command takes such a recipe by its name, in any folder.
    """
    from gptoss_tune.shipped import name_of_recipe, seen_from_here, shipped

    if copy is not None:
        _copy(copy, out, as_json)
        return
    if out is not None:
        raise typer.BadParameter("names the file that --copy NAME writes", param_hint="--out")
    listed = []
    for path in sorted(shipped("recipes").rglob("*.yaml")):
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        of_accelerate = path.parent.name == "accelerate"
        entry = {
            "kind": "accelerate" if of_accelerate else "recipe",
            "name": path.stem if of_accelerate else name_of_recipe(path),
            "path": seen_from_here(path),
            "description": first.removeprefix("#").strip(),
        }
        listed.append(entry)
    if as_json:
        typer.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    _print_recipes(listed)


def _print_recipes(listed: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for kind, shown, heading in (
        (
            "recipe",
            "name",
            "Recipes: gptoss-tune plan NAME, gptoss-tune train NAME, from any folder",
        ),
        (
            "accelerate",
            "path",
            "For accelerate launch --config_file PATH -m gptoss_tune.train NAME",
        ),
    ):
        console.print(Text(heading, style="bold cyan"))
        for entry in listed:
            if entry["kind"] == kind:
                name, text = entry[shown], entry["description"]
                console.print(Text.assemble("  ", (name, "bold"), f"\n    {text}"))
    console.print("To edit one: gptoss-tune recipes --copy NAME")


def _copy(name: str, out: Path | None, as_json: bool) -> None:
    """Write a shipped recipe into a new file and say what comes next.

    Raises:
        RecipeError: None has this name, or the file is there already.
    """
    from gptoss_tune.errors import RecipeError
    from gptoss_tune.shipped import name_of_recipe, nearest_recipes, recipe_text, shipped_recipe

    recipe = shipped_recipe(name)
    if recipe is None:
        near = nearest_recipes(name)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise RecipeError(
            f"--copy: got {name!r}, expected the name of a shipped recipe; {hint}'gptoss-tune "
            "recipes' lists them"
        )
    plain = (name_of_recipe(recipe) or name).replace("/", "-") + ".yaml"
    place = Path(plain) if out is None else out / plain if out.is_dir() else out
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("x", encoding="utf-8") as file:
            file.write(recipe_text(recipe, place.parent))
    except FileExistsError:
        raise RecipeError(
            f"{place} is there already, and stays as it is; name another file: --out FILE"
        ) from None
    except OSError as error:
        raise RecipeError(f"{place}: cannot be written ({error.strerror}); check --out") from None
    if as_json:
        typer.echo(json.dumps({"written": str(place)}))
        return
    file = shlex.quote(str(place))
    typer.echo(f"wrote {place}. Next:")
    if recipe.parent.name == "tiny":
        typer.echo("  gptoss-tune tiny runs/demo/base")
    typer.echo(f"  gptoss-tune plan {file}")
    typer.echo(f"  gptoss-tune train {file} data.train=YOURS.jsonl data.eval=null")
