"""``gptoss-tune plan``: what a recipe needs, before anything is downloaded or started."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gptoss_tune.cli.arguments import AsJson, Overrides, RecipePath, renamed_option

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_tune.plan.plan import Plan

_GIB = 2**30


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option("--gpu", help="The card, such as rtx4090-24gb.")] = (
        "h100-80gb"
    ),
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus", help="How many; default: distributed.num_processes.", show_default=False
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            metavar="ddp|fsdp2",
            help="With several: each holds the model (ddp), or a share of it (fsdp2); default: "
            "distributed.strategy, else ddp.",
            show_default=False,
        ),
    ] = None,
    _: Annotated[str | None, renamed_option("--spread", "--strategy")] = None,
    efficiency: Annotated[
        float | None,
        typer.Option(
            "--efficiency",
            help="Share of the card's rate that is assumed; default 0.35.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=1, help="Tokens of one epoch, if known.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a recipe needs: memory, disk, operations, hours; and what to change.

    Reads no weights and asks no network. Exit code 0 when it fits, 3 when it does not.
    """
    from gptoss_tune.errors import MachineError
    from gptoss_tune.plan.flops import DEFAULT_EFFICIENCY
    from gptoss_tune.plan.gpus import card
    from gptoss_tune.plan.plan import plan as make_plan
    from gptoss_tune.preflight.unusual import unusual_settings
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.workflows.sweep import first_run

    words, runs = first_run(overrides or [])
    resolved = load_recipe(recipe, words)
    made = make_plan(
        resolved,
        card(gpu),
        gpus=gpus,
        strategy=_strategy(strategy),
        efficiency=DEFAULT_EFFICIENCY if efficiency is None else efficiency,
        epoch_tokens=tokens,
    )
    unusual = unusual_settings(
        resolved.model, resolved.lora, resolved.method, resolved.data, resolved.train
    )
    if as_json:
        sweep = {"sweep": [run.values for run in runs]} if runs else {}
        typer.echo(json.dumps({**made.as_json(), "warnings": unusual, **sweep}, indent=2))
    else:
        _print(made, str(recipe))
        for line in unusual:
            typer.echo(f"warning: {line}", err=True)
        if runs:
            typer.echo(f"the first of {len(runs)} runs: {'; '.join(map(str, runs))}")
    if not made.fits:
        raise typer.Exit(MachineError.exit_code)


def _strategy(text: str | None) -> Literal["ddp", "fsdp2"] | None:
    from gptoss_tune.errors import RecipeError

    if text is None or text == "ddp" or text == "fsdp2":
        return text
    raise RecipeError(f"--strategy: got {text!r}, expected ddp or fsdp2")


def _print(made: Plan, name: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    count, card = made.recipe.distributed.num_processes, made.card
    cards = card.name if count == 1 else f"{count} x {card.name}, {made.strategy}"
    console.print(Text(f"{name} on {cards}", style="bold"))
    _print_parameters(made, console)
    console.print(Text("memory of one GPU at its peak", style="bold cyan"))
    for kind, size in made.memory.kinds.items():
        if size:
            console.print(f"  {kind:<18} {size / _GIB:8.2f} GiB")
    style, verdict = ("green", "fits") if made.fits else ("red", "does not fit")
    peak, room = made.memory.peak / _GIB, card.memory_gib
    console.print(
        Text.assemble(
            (f"  {'peak':<18} {peak:8.2f} GiB", "bold"),
            (f" of {room:.1f}: {verdict}", f"bold {style}"),
        )
    )
    if made.host_bytes:
        console.print(f"  in host memory     {made.host_bytes / _GIB:8.2f} GiB")
    _print_disk(made, console)
    _print_work(made, console)
    _print_advice(made, console)


def _print_parameters(made: Plan, console: Console) -> None:
    from rich.text import Text

    from gptoss_tune.plan.plan import experts_per_rank, parameters, trained_by_target

    layers = len({factor.layer for factor in made.factors})
    console.print(Text("parameters", style="bold cyan"))
    console.print(f"  base    {parameters(made.architecture):>15,}")
    console.print(
        f"  trained {made.trained:>15,} in {layers} of {made.architecture.layers} layers, "
        f"{made.trained // layers:,} each"
    )
    for target, count in trained_by_target(made.factors).items():
        console.print(f"    {target:<12} {count:>11,}")
    per_rank = experts_per_rank(made.factors)
    if per_rank:
        console.print(f"    one more rank on the experts adds {per_rank:,}")


def _print_disk(made: Plan, console: Console) -> None:
    from rich.text import Text

    disk = made.disk
    console.print(Text("disk", style="bold cyan"))
    rows = (
        ("base checkpoint", disk.base),
        ("training checkpoints", disk.checkpoints),
        ("adapter", disk.adapter),
        ("merged, MXFP4", disk.merged_mxfp4),
        ("merged, bf16", disk.merged_bf16),
    )
    for kind, size in rows:
        console.print(f"  {kind:<21} {size / _GIB:8.2f} GiB")


def _print_work(made: Plan, console: Console) -> None:
    from rich.text import Text

    work = made.work
    again = f", {work.flops.recomputed / 1e9:.1f} of it again" if work.flops.recomputed else ""
    console.print(Text("time", style="bold cyan"))
    console.print(f"  {work.flops.total / 1e9:.1f} GFLOP a token{again}")
    console.print(
        f"  {work.tokens_per_second:,.0f} tokens/s, if {work.efficiency:.0%} of "
        f"{made.card.tflops:,.0f} TFLOP/s is reached (assumed, not measured)"
    )
    if not made.card.has_bf16:
        console.print("  this GPU has no units for bf16, which the rate of fp32 stands for")
    if work.tokens is None or work.hours is None:
        console.print("  hours: not known before the data is read; give --tokens")
        _print_reference(made, console)
        return
    steps = "" if work.steps is None else f", optimizer steps: {work.steps:,}"
    console.print(f"  {work.tokens:,} tokens ({work.tokens_from}){steps}")
    console.print(f"  {_duration(work.hours)} of training; loading and saving on top")
    _print_reference(made, console)
    _print_evaluation(made, console)
    if made.hours is not None and made.hours != work.hours:
        console.print(f"  {_duration(made.hours)} in all")


def _print_reference(made: Plan, console: Console) -> None:
    found = made.reference
    if found is None:
        return
    long = "not known before the data is read" if found.hours is None else _duration(found.hours)
    through = "all data" if found.tokens is None else f"{found.tokens:,} tokens"
    console.print(f"  reference pass, once: {long} ({through} forward);")
    console.print(f"    its peak of {found.peak / _GIB:.2f} GiB lies below a training step's")


def _print_evaluation(made: Plan, console: Console) -> None:
    found = made.evaluation
    parts = []
    for name, part in (("held-out data", found.held_out), ("prompts and drift", found.asked)):
        if part.times != 0:
            times = "every eval_steps" if part.times is None else f"{part.times:,} x"
            each = "of unknown length" if part.seconds is None else _duration(part.seconds / 3600)
            parts.append(f"{name} {times} {each}")
    if not parts:
        return
    longest = made.recipe.evaluation.max_new_tokens
    hours = "of unknown length" if found.hours is None else f"{_duration(found.hours)} at most"
    answers = f", {found.answers} answers of up to {longest} tokens each time"
    console.print(f"  evaluation: {hours} ({'; '.join(parts)}{answers if found.answers else ''})")


def _duration(hours: float) -> str:
    for unit, length in (("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= length:
            return f"{hours / length:.1f} {unit}"
    return f"{hours * 3600:.0f} seconds" if hours * 3600 >= 0.5 else "less than a second"


def _print_advice(made: Plan, console: Console) -> None:
    from rich.text import Text

    if made.fits:
        return
    heading = "to make it fit, cheapest first" if made.advice else "nothing here makes it fit"
    console.print(Text(heading, style="bold cyan"))
    for entry in made.advice:
        mark = "enough" if entry.fits else "not enough"
        words = " ".join(entry.overrides)
        console.print(
            f"  {entry.peak / _GIB:8.2f} GiB, {mark}: {words}{' - ' if words else ''}{entry.cost}"
        )
    if made.larger is not None:
        console.print(f"  or a larger card: {made.larger.name}")
