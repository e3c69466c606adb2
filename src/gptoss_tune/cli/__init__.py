"""The command ``gptoss-tune``: one file per family of commands, heavy imports inside the commands.

Every command ends with an exit code a script can act on (0 done, 2 the user's input, 3 the
environment, 75 stopped and resumable) and shows a message, not a traceback, unless ``--debug``.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from gptoss_tune import __version__
from gptoss_tune.cli import tiny
from gptoss_tune.errors import GptossTuneError

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
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Options that every command shares."""


app.command("tiny")(tiny.tiny)


def main() -> None:
    """Run the command line; turn the project's own errors into one message and an exit code."""
    debug = "--debug" in sys.argv[1:]
    if debug:  # accepted before and after the command's name
        sys.argv = [sys.argv[0], *(a for a in sys.argv[1:] if a != "--debug")]
    try:
        app()
    except GptossTuneError as error:
        if debug:
            traceback.print_exc()
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        typer.secho("stopped by Ctrl-C; nothing half-written was left behind", err=True)
        raise SystemExit(130) from None
