"""``gptoss-tune report``: the page of a run, or of several compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptoss_tune.cli.arguments import renamed_option
from gptoss_tune.run.folder import REPORT, refuse_no_run


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help=f"The HTML file; default: {REPORT} in the folder of the only run.",
            show_default=False,
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    _: Annotated[Path | None, renamed_option("--output", "--out")] = None,
) -> None:
    """Write what a run did as one self-contained HTML page, or compare several runs on one."""
    for run in runs:
        refuse_no_run(run)
    from gptoss_tune.report.page import open_in_browser, write_report

    path = write_report(runs, out)
    typer.echo(str(path))
    if open_page and not open_in_browser(path):
        typer.echo(f"no browser was found here; open {path} yourself", err=True)
