"""``gptoss-tune reproduce``: a finished run once more, and both compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import renamed_option

if TYPE_CHECKING:
    from gptoss_tune.workflows.reproduce import Comparison, Difference

_MOST_STEPS = 12


def reproduce(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the second run; default: RUN-again.")
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Run although data or base are not as they were.")
    ] = False,
    environment: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:CLASS", help="Class that played the run's episodes; it is imported."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    _: Annotated[Path | None, renamed_option("--output", "--out")] = None,
) -> None:
    """Train a run's recipe again and compare losses and adapter, step by step, value by value.

    Exit code 0: exact, or within the reduction error of fp32; 2: different.
    Call it from the folder in which the run was started: its recipe's paths are relative to it.
    """
    from gptoss_tune.errors import CheckpointError, RecipeError
    from gptoss_tune.files.atomic import refuse_existing
    from gptoss_tune.preflight.finished import finished_record
    from gptoss_tune.train.entrypoint import starting

    finished_record(run)
    place = out or run.with_name(f"{run.name}-again")
    refuse_existing(place)
    with starting():
        from gptoss_tune.run.record import load_run_recipe, refuse_other_environment
        from gptoss_tune.workflows.reproduce import compare, differences, record_of, run_again

    record = record_of(run)
    refuse_other_environment(record, run, environment)
    found = differences(record, load_run_recipe(run).model, run)
    if not as_json:
        _print_differences(found)
    if any(each.changes_result for each in found) and not anyway:
        listed = "; ".join(f"{d.what}: {d.then} then, {d.now} now" for d in found[:6])
        raise RecipeError(
            f"{run}: data, base or recipe are not what the run was made of ({listed}); put them "
            "back, or see what comes of it with --anyway"
        )
    code = run_again(record, run, place, environment)
    if code:
        raise CheckpointError(f"{place}: the second run ended with exit code {code}; see above")
    result = compare(run, place)
    if as_json:
        _print_json(found, result)
    else:
        _print_comparison(result, run, place)
    if result.verdict == "different":
        raise typer.Exit(2)


def _print_differences(found: list[Difference]) -> None:
    from rich.console import Console
    from rich.table import Table

    from gptoss_tune.display import visible

    console = Console(markup=False)
    if not found:
        console.print("data, base, versions and hardware are those of the run")
        return
    table = Table("not as it was", "then", "now", "so the result")
    for each in found:
        effect = "changes" if each.changes_result else "may round otherwise"
        table.add_row(*(visible(text) for text in (each.what, each.then, each.now, effect)))
    console.print(table)


def _print_json(found: list[Difference], result: Comparison) -> None:
    from dataclasses import asdict

    from gptoss_tune.files.strict_json import to_text

    body = {"differences": [asdict(each) for each in found], **asdict(result)}
    typer.echo(to_text(body, indent=2))


def _print_comparison(result: Comparison, run: Path, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)
    unequal = [pair for pair in result.steps if pair.then != pair.now]
    table = Table("step", str(run), str(out), "difference")
    for pair in (unequal or list(result.steps))[:_MOST_STEPS]:
        words = ["-" if loss is None else f"{loss:.6f}" for loss in (pair.then, pair.now)]
        if pair.then is None or pair.now is None:
            words.append("not logged")
        else:
            words.append(f"{pair.now - pair.then:+.2e}")
        table.add_row(str(pair.step), *words)
    console.print(table)
    console.print(
        f"losses: {len(result.steps) - len(unequal)} of {len(result.steps)} steps equal, largest "
        f"relative difference {result.loss_difference:.1e}"
    )
    named = ", ".join(result.unequal[:3]) + (" ..." if len(result.unequal) > 3 else "")
    console.print(
        f"adapter: {result.factors - len(result.unequal)} of {result.factors} tensors equal"
        + (f", largest difference {result.factor_difference:.1e}: {named}" if named else ""),
        soft_wrap=True,
    )
    console.print(f"verdict: {result.verdict}")
