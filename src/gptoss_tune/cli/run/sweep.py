"""``gptoss-tune train RECIPE key=[a,b]``: the runs of a sweep, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gptoss_tune.workflows.sweep import (
    Sweep,
    SweepRun,
    folder_of,
    is_finished,
    refuse_many,
    train_command,
    with_folder,
)

if TYPE_CHECKING:
    from gptoss_tune.report.parts.read import Run


def train_sweep(
    recipe: str, runs: Sequence[SweepRun], *, most: int, allow_change: Sequence[str], on_cpu: bool
) -> int:
    """Train every run that is not finished, compare all, and return the worst exit code.

    Args:
        recipe: Its file.
        runs: From ``sweep_runs``.
        most: How many are meant at most.
        allow_change: As given to ``train``.
        on_cpu: Likewise.

    Raises:
        GptossTuneError: One of them would be refused; nothing was started.
    """
    from gptoss_tune.preflight.training import look_before_training
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.recipe.load import places

    refuse_many(runs, most)
    sweep, left, warned = Sweep(), [], set()
    changes = [word for name in allow_change for word in ("--allow-change", name)]
    options = [*changes, *(["--on-cpu"] if on_cpu else [])]
    folders: dict[Path, SweepRun] = {}
    output_dir = load_recipe(recipe, runs[0].overrides).train.output_dir
    for run in runs:
        folder = folder_of(output_dir, run)
        folders[folder] = run
        words = with_folder(run, folder)
        loaded = load_recipe(recipe, words)
        if is_finished(folder, loaded.model_dump(mode="json")):
            sweep.codes[folder] = 0
            continue
        where = places(recipe, words)
        warned |= set(
            look_before_training(recipe, loaded, where, allow_change=allow_change, on_cpu=on_cpu)
        )
        left.append((folder, train_command(recipe, words, options)))
    for line in sorted(warned):
        typer.echo(f"warning: {line}", err=True)
    done = len(runs) - len(left)
    typer.echo(f"a sweep of {len(runs)} runs{f', {done} of them finished before' if done else ''}")
    sweep.run(left, typer.echo)
    if sweep.stopped:
        typer.echo("stopped: the same command goes on with this sweep", err=True)
        return sweep.exit_code
    _print_comparison(output_dir, folders, sweep.codes)
    return sweep.exit_code


def _print_comparison(
    output_dir: str, folders: dict[Path, SweepRun], codes: dict[Path, int]
) -> None:
    """Print a line for each run, the best first, and write the page of all.

    Best is the least held-out loss, or the highest held-out reward where runs learn from rewards.
    """
    from rich.console import Console
    from rich.table import Table

    from gptoss_tune.display import visible
    from gptoss_tune.report.page import MOST_RUNS, write_report
    from gptoss_tune.report.parts.read import read_run
    from gptoss_tune.run.folder import RunFolder

    read = {f: read_run(f) for f in folders if RunFolder(f).record.is_file()}
    # Of what the run published, which keep_best may have chosen among the evaluations.
    rewarded = any(run.method.reinforcement for run in read.values())
    name, sign = ("reward", -1) if rewarded else ("loss", 1)
    held_out = {
        f: _last([_published(run)] if run.fact("best") else run.held_out, f"eval_{name}")
        for f, run in read.items()
    }
    trained = {f: _last(run.train, name) for f, run in read.items()}
    by = held_out if any(value is not None for value in held_out.values()) else trained
    ordered = sorted(
        folders, key=lambda f: (codes[f] != 0, by.get(f) is None, sign * (by.get(f) or 0.0))
    )
    swept = list(next(iter(folders.values())).values)
    table = Table(*swept, f"held-out {name}", f"training {name}", "run")
    for folder in ordered:
        values = [visible(value) for value in folders[folder].values.values()]
        failed = f" (failed with exit code {codes[folder]})" if codes[folder] else ""
        losses = [_figure(held_out.get(folder)), _figure(trained.get(folder))]
        table.add_row(*values, *losses, f"{visible(str(folder))}{failed}")
    Console(markup=False).print(table)
    compared = [folder for folder in ordered if folder in read][:MOST_RUNS]
    if len(compared) > 1:
        page = write_report(compared, Path(f"{output_dir.rstrip('/')}-sweep.html"))
        best = f" (the best {MOST_RUNS})" if len(read) > MOST_RUNS else ""
        typer.echo(f"compared{best}: {page}")


def _published(run: Run) -> dict[str, Any]:
    """Return the figures of the weights that a run published, by name."""
    figures = run.fact("best", "figures")
    return {**run.record, **(figures if isinstance(figures, dict) else {})}


def _last(rows: list[dict[str, Any]], name: str) -> float | None:
    found = [row[name] for row in rows if isinstance(row.get(name), int | float)]
    return found[-1] if found else None


def _figure(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"
