"""``gptoss-tune ui``: a page on this machine for runs, recipes and a chat."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptoss_tune.error_hints import missing_extra
from gptoss_tune.errors import MachineError


def ui(
    folder: Annotated[Path, typer.Argument(help="The folder below which your runs lie.")] = Path(
        "."
    ),
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=1,
            max=65535,
            help="Of 127.0.0.1; default: 8765, or one that is free.",
            show_default=False,
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, open no window.")
    ] = False,
) -> None:
    """Look at runs while they train, write and check recipes, talk to a model, in the browser.

    For this machine alone: the address has a token. Nothing is started without a click.
    """
    for library in ("starlette", "uvicorn"):
        if (missing := missing_extra(library)) is not None:
            raise MachineError(missing)
    from gptoss_tune.ui.server.serve import serve

    serve(folder, port=port, browser=not no_browser)
