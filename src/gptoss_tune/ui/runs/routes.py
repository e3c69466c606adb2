"""Pages of runs: the list, one run, its report, and the button that stops it."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from gptoss_tune.errors import GptossTuneError, RecipeError
from gptoss_tune.report.page import run_page
from gptoss_tune.report.parts.read import read_run
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.holder import holder
from gptoss_tune.ui.pages import Pages, foreign_page
from gptoss_tune.ui.runs.found import MOST_RUNS, Summary, run_named, runs_below
from gptoss_tune.ui.runs.live import LiveRuns

_COLUMNS: Final = (
    ("name", "run"),
    ("state", "state"),
    ("progress", "progress"),
    ("loss", "loss"),
    ("eval_loss", "held out"),
    ("changed", "last written"),
    ("method", "method"),
    ("model", "base"),
)
_LAST_FIRST: Final = ("changed", "progress")
"""Columns whose largest value is what a first click asks for."""
_NONE: Final = float("inf")


class RunPages:
    """The pages of the runs below one folder."""

    def __init__(self, folder: Path, pages: Pages) -> None:
        """Look at nothing yet."""
        self._folder, self._pages = folder, pages
        self._live = LiveRuns()

    def listed(self, request: Request) -> Response:
        """Return the list of runs, by the column that is asked for."""
        runs, more = runs_below(self._folder)
        known = [name for name, _ in _COLUMNS]
        column = request.query_params.get("sort", "")
        column = column if column in known else "changed"
        falling = request.query_params.get("order", _first_order(column)) == "falling"
        runs.sort(key=lambda one: one.name)
        runs.sort(key=lambda one: _key(one, column, falling), reverse=falling)
        running = any(run.state in ("running", "elsewhere") for run in runs)
        if len(runs) == 1 and runs[0].name == "." and not request.query_params:
            return RedirectResponse("/run?run=.", 303)
        orders = {name: _other(falling) if name == column else _first_order(name) for name in known}
        return self._pages.page(
            "runs.html",
            runs=runs,
            more=MOST_RUNS if more else 0,
            columns=_COLUMNS,
            column=column,
            falling=falling,
            orders=orders,
            running=running,
        )

    def run(self, request: Request) -> Response:
        """Return the page of one run."""
        name = request.query_params.get("run", "")
        try:
            folder = run_named(self._folder, name)
        except RecipeError:
            return self._pages.page("missing.html", 404, what="run")
        view = self._live.view(folder)
        return self._pages.page(
            "run.html",
            name=name,
            title=folder.name,
            view=view,
            stoppable=holder(folder) is not None,
            commands=_next_commands(folder) if view.state == "finished" else [],
            resumable=view.state in ("stopped", "ended") and RunFolder(folder).recipe.is_file(),
            resume=_command("train", str(RunFolder(_shown(folder)).recipe)),
        )

    def live(self, request: Request) -> Response:
        """Return what has changed of a run's page, or 204 where nothing has."""
        try:
            folder = run_named(self._folder, request.query_params.get("run", ""))
        except RecipeError as error:
            return JSONResponse({"error": str(error)}, 404)
        view = self._live.view(folder)
        if view.version == request.query_params.get("version"):
            return Response(status_code=204)
        return JSONResponse(
            {
                "version": view.version,
                "moves": view.moves,
                "words": view.words,
                "badge": self._pages.part("badge.html", state=view.state),
                "step": view.step,
                "steps": view.steps,
                "parts": view.parts,
            }
        )

    def report(self, request: Request) -> Response:
        """Return the report of a run, made now."""
        try:
            folder = run_named(self._folder, request.query_params.get("run", ""))
            return foreign_page(run_page(read_run(folder)))
        except GptossTuneError:
            return self._pages.page("missing.html", 404, what="run")

    def stop(self, body: dict[str, Any]) -> Response:
        """Ask the process of a run to stop, as Ctrl-C in its terminal does."""
        folder = run_named(self._folder, str(body.get("run", "")))
        process = holder(folder)
        if process is None:
            raise RecipeError(
                "no process of this machine writes into this run; stop it where it was started"
            )
        if os.name != "posix":
            raise RecipeError("stop it by Ctrl-C in its own terminal; here it would be cut off")
        try:
            process.send_signal(signal.SIGINT)
        except OSError as error:
            raise RecipeError(
                f"process {process.pid} cannot be stopped from here ({error.strerror}); it is "
                "somebody else's"
            ) from None
        return JSONResponse({"process": process.pid})


def _key(run: Summary, column: str, falling: bool) -> Any:
    """Return what a run is sorted by; what is not known comes last."""
    value = run.share if column == "progress" else getattr(run, column)
    if value is None:
        return -_NONE if falling else _NONE
    return value.lower() if isinstance(value, str) else value


def _first_order(column: str) -> str:
    return "falling" if column in _LAST_FIRST else "rising"


def _other(falling: bool) -> str:
    return "rising" if falling else "falling"


def _shown(folder: Path) -> Path:
    """Return a folder as one would type it here."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _command(*words: str) -> str:
    return shlex.join(["gptoss-tune", *words])


def _next_commands(folder: Path) -> list[tuple[str, str]]:
    """Return what is done with a finished run: in words, and as a command."""
    run = str(_shown(folder))
    return [
        ("talk to it", _command("chat", run)),
        ("one folder of weights", _command("merge", run, "--out", f"{folder.name}-merged")),
        ("to the Hub, private", _command("push", run)),
    ]
