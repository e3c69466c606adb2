"""``gptoss-tune plan``: what a recipe needs, before anything is downloaded or started."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gptoss_tune.cli.arguments import (
    AsJson,
    Overrides,
    RecipePath,
    complete_card,
    renamed_option,
)

if TYPE_CHECKING:
    from gptoss_tune.plan.gpus import Gpu


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            help="The card, such as 4090 or a100-80; default: this machine's, else h100-80gb.",
            autocompletion=complete_card,
            show_default=False,
        ),
    ] = None,
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
    from gptoss_tune.cli.recipe.plan_text import Typed, print_common_cards, print_plan
    from gptoss_tune.errors import MachineError
    from gptoss_tune.plan.flops import DEFAULT_EFFICIENCY
    from gptoss_tune.plan.plan import plan as make_plan
    from gptoss_tune.preflight.unusual import unusual_settings
    from gptoss_tune.recipe import load_recipe
    from gptoss_tune.workflows.sweep import first_run

    words, runs = first_run(overrides or [])
    resolved = load_recipe(recipe, words)
    chosen, origin, said = _chosen(gpu, gpus or resolved.distributed.num_processes)
    made = make_plan(
        resolved,
        chosen,
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
        body = {**made.as_json(), "warnings": unusual, **sweep}
        body["gpu"]["from"] = origin
        typer.echo(json.dumps(body, indent=2))
    else:
        options = () if gpus is None else ("--gpus", str(gpus))
        options += () if strategy is None else ("--strategy", strategy)
        print_plan(made, str(recipe), said, Typed(str(recipe), tuple(words), options))
        if origin == "none":
            print_common_cards(made)
        for line in unusual:
            typer.echo(f"warning: {line}", err=True)
        if runs:
            typer.echo(f"the first of {len(runs)} runs: {'; '.join(map(str, runs))}")
    if not made.fits:
        raise typer.Exit(MachineError.exit_code)


def _chosen(
    gpu: str | None, processes: int
) -> tuple[Gpu, Literal["--gpu", "detected", "none"], list[str]]:
    """Return the card to plan for, where it comes from, and what to say about it."""
    from gptoss_tune.plan.gpus import DEFAULT_GPU, card, detected_gpus

    if gpu is not None:
        return card(gpu), "--gpu", []
    found = detected_gpus()
    if not found:
        said = f"no GPU found here; planned for {DEFAULT_GPU}, --gpu NAME plans for another"
        return card(DEFAULT_GPU), "none", [said]
    names = list(dict.fromkeys(one.name for one in found))
    said = [f"this machine: {sum(o.name == name for o in found)} x {name}" for name in names]
    if len(found) < processes:
        said.append(f"the recipe is for {processes} of them")
    # The recipe's processes take the largest cards, and the smallest of those has to hold it.
    largest = sorted(found, key=lambda one: one.memory_gib, reverse=True)
    least = largest[min(processes, len(found)) - 1]
    meant = least.planned_as
    if meant is None:
        said.append(f"{least.memory_gib:.1f} GiB, less than any card that is listed")
        return card(DEFAULT_GPU), "none", [*said, f"planned for {DEFAULT_GPU} instead"]
    if least.known is None:
        size = f"{least.memory_gib:.1f} GiB and is not listed"
        said.append(f"it has {size}: planned as the nearest with no more memory")
    return meant, "detected", said


def _strategy(text: str | None) -> Literal["ddp", "fsdp2"] | None:
    from gptoss_tune.errors import RecipeError

    if text is None or text == "ddp" or text == "fsdp2":
        return text
    raise RecipeError(f"--strategy: got {text!r}, expected ddp or fsdp2")
