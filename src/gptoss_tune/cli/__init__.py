"""The command ``gptoss-tune``: a file for each family of commands, in folders by when it is used.

``recipe/`` before anything runs (no torch), ``run/`` a run and its record, ``model/`` what was
tuned. Heavy imports are inside the commands. Every command ends with an exit code a script can act
on (0 done, 2 the user's input, 3 the environment, 75 stopped and resumable) and shows a message,
not a traceback, unless ``--debug``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from gptoss_tune import __version__
from gptoss_tune.cli import convert
from gptoss_tune.cli.chat import command as chat_command
from gptoss_tune.cli.model import adapter, benchmark, evaluate, export, serve, suites, verify
from gptoss_tune.cli.recipe import data, init, plan, recipes
from gptoss_tune.cli.run import demo, launch, report, reproduce, train, ui
from gptoss_tune.errors import run_command

# The groups of the help page, in the order of a first hour.
COMMANDS: dict[str, dict[str, Callable[..., Any]]] = {
    "Start": {
        "demo": demo.demo,
        "ui": ui.ui,
        "init": init.init,
        "convert": convert.convert,
        "recipes": recipes.recipes,
        "tiny": demo.tiny,
    },
    "Before a run (no GPU, no torch)": {
        "check": recipes.check,
        "plan": plan.plan,
        "preview": data.preview,
        "check-data": data.check_data,
        "schema": recipes.schema,
    },
    "A run": {
        "train": train.train,
        "launch": launch.launch,
        "report": report.report,
        "reproduce": reproduce.reproduce,
    },
    "A tuned model": {
        "chat": chat_command.chat,
        "evaluate": evaluate.evaluate,
        "benchmark": benchmark.benchmark,
        "suites": suites.suites,
        "merge": export.merge,
        "verify": verify.verify,
        "adapter": adapter.adapter,
        "serve-config": serve.serve_config,
        "push": serve.push,
    },
}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gptoss-tune {__version__}")
        raise typer.Exit


def _root(
    # Read by main() before typer sees it; declared for the help page.
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Options that every command shares."""


def _application(only: str | None = None) -> typer.Typer:
    """Return the application with all commands, or with ``only`` one of them.

    Every option of every command is looked at before the first is run, a tenth of a second for
    those that are not asked for.
    """
    made = typer.Typer(
        name="gptoss-tune",
        help="Fine-tune gpt-oss: recipe in, adapter and proven export out.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    made.callback()(_root)
    for group, commands in COMMANDS.items():
        for name, command in commands.items():
            if only in (None, name):
                made.command(name, rich_help_panel=group)(command)
    return made


app = _application()


def main() -> None:
    """Run the command line."""
    debug = "--debug" in sys.argv[1:]  # accepted before and after the command's name
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    named = sys.argv[1] if len(sys.argv) > 1 else None
    known = any(named in commands for commands in COMMANDS.values())
    run_command(_application(named) if known else app, debug=debug)
