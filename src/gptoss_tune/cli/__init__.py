"""The command ``gptoss-tune``: one file per family of commands, heavy imports inside the commands.

Every command ends with an exit code a script can act on (0 done, 2 the user's input, 3 the
environment, 75 stopped and resumable) and shows a message, not a traceback, unless ``--debug``.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gptoss_tune import __version__
from gptoss_tune.cli import (
    chat,
    data,
    demo,
    evaluate,
    export,
    launch,
    plan,
    recipes,
    report,
    reproduce,
    serve,
    train,
)
from gptoss_tune.errors import run_command

app = typer.Typer(
    name="gptoss-tune",
    help="Fine-tune gpt-oss: recipe in, adapter and proven export out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gptoss-tune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    # Read by main() before typer sees it; declared for the help page.
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Options that every command shares."""


app.command("check")(recipes.check)
app.command("schema")(recipes.schema)
app.command("recipes")(recipes.recipes)
app.command("plan")(plan.plan)
app.command("preview")(data.preview)
app.command("check-data")(data.check_data)
app.command("tiny")(demo.tiny)
app.command("merge")(export.merge)
app.command("verify")(export.verify)
app.command("adapter")(export.adapter)
app.command("serve-config")(serve.serve_config)
app.command("push")(serve.push)
app.command("chat")(chat.chat)
app.command("evaluate")(evaluate.evaluate)
app.command("train")(train.train)
app.command("report")(report.report)
app.command("launch")(launch.launch)
app.command("reproduce")(reproduce.reproduce)
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command line."""
    debug = "--debug" in sys.argv[1:]  # accepted before and after the command's name
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    run_command(app, debug=debug)
