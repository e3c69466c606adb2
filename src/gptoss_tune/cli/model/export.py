"""``gptoss-tune merge`` and its neighbours: what is done with a finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import (
    AsJson,
    BasePath,
    Device,
    MergeFormat,
    OtherBase,
    Revision,
    path_and_weight,
    refuse_revision_of_nothing,
    size_in_bytes,
)
from gptoss_tune.cli.model.verify import print_checks, print_left_out
from gptoss_tune.display import visible
from gptoss_tune.error_hints import missing_extra
from gptoss_tune.errors import MachineError
from gptoss_tune.terminal import WORST_SHOWN, next_commands

if TYPE_CHECKING:
    from gptoss_tune.export.merge.steps import WeightedAdapter
    from gptoss_tune.workflows.calibrate import Calibration
    from gptoss_tune.workflows.finished_run import Merged

AdapterPath = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN_OR_ADAPTER...",
        help="A run, an adapter or its Hub name; several are summed, each PATH or PATH=WEIGHT. "
        "None: the base alone is written in the format.",
        show_default=False,
    ),
]


def merge(
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    adapters: AdapterPath = None,
    format: Annotated[
        MergeFormat,
        typer.Option(
            help="Layout of the experts in the result; gguf: those of mxfp4, gguf-bf16: those of "
            "bf16, in the file of llama.cpp, Ollama and LM Studio."
        ),
    ] = MergeFormat.bf16,
    base: BasePath = None,
    revision: Revision = None,
    other_base: OtherBase = False,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Largest file: bytes, or 5GB, 500MB, 2GiB; default: 5GB, of a GGUF 45GB.",
        ),
    ] = None,
    device: Device = "cpu",
    min_survival: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Share of the change MXFP4 must keep; default: the recipe's."
        ),
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Write MXFP4 even where less survives.")
    ] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where MXFP4 keeps too little, first train merge-aware on this data.",
        ),
    ] = None,
    calibrate_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of that training; default: 200.")
    ] = None,
    verified: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Verify before the folder gets its name.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base and write a checkpoint that needs no adapter.

    A merge that was stopped goes on where it was when the same command is given again.
    """
    from gptoss_tune.files.atomic import refuse_existing, to_json
    from gptoss_tune.preflight.finished import look_at_adapters

    refuse_revision_of_nothing(base, revision)
    refuse_existing(out)
    largest = None if max_shard_size is None else size_in_bytes(max_shard_size)
    if format in (MergeFormat.gguf, MergeFormat.gguf_bf16) and (extra := missing_extra("gguf")):
        raise MachineError(f"--format {format.value}: {extra}")
    named = [path_and_weight(text) for text in adapters or ()]
    look_at_adapters([path for path, _ in named], base, revision)
    from gptoss_tune.export.merge.options import is_gguf_format, merge_options
    from gptoss_tune.workflows import finished_run
    from gptoss_tune.workflows.calibrate import merge_calibrated

    calibration = _calibration(
        calibrate, calibrate_steps, adapters or [], out, format, accept_loss=accept_loss
    )
    checkpoint, weighted = finished_run.open_adapters(named, base, revision, other_base=other_base)
    asked = finished_run.strictest_survival(weighted) if min_survival is None else min_survival
    options = merge_options(
        format.value,
        max_shard_size=largest,
        device=device,
        min_survival=asked,
        accept_loss=accept_loss,
    )

    def export(weighted: list[WeightedAdapter]) -> Merged:
        return finished_run.merge_opened(
            checkpoint,
            weighted,
            out,
            options,
            gguf=is_gguf_format(format.value),
            verified=verified,
            progress=show_progress,
        )

    if calibration is None:
        done = export(weighted)
    else:
        recipe = calibration.recipe(base, revision)
        done = merge_calibrated(recipe, checkpoint, weighted, export, other_base=other_base)
    finished_run.note(named, "merge", done.verification, out)
    if as_json:
        checked = None if done.verification is None else done.verification.as_dict()
        sys.stdout.write(to_json({**done.report, "out": str(out), "verification": checked}))
        return
    _print_merged(done, format, [path for path, _ in named])


def _print_merged(done: Merged, format: MergeFormat, merged: list[str]) -> None:
    """Print what was written, what was added to it and what was checked, and what comes next."""
    if "completed" in done.report:
        added = ", ".join(done.report["completed"])
        typer.echo(f"the base has no {added}; the result has the release's settings there")
    if done.report["survival"]["stacks"]:
        print_survival(done.report["survival"])
    if done.verification is not None:
        print_checks(done.verification)
    typer.echo(f"{done.folder}: {format.value}, {done.report['bytes'] / 1e9:.2f} GB")
    target = "vllm" if format in (MergeFormat.bf16, MergeFormat.mxfp4) else "llama.cpp"
    for line in next_commands(_after_merging(str(done.folder), merged, target)):
        typer.echo(visible(line))


def _after_merging(folder: str, merged: list[str], target: str) -> list[tuple[list[str], str]]:
    """Return what most people do with a merged folder; the run it came of is pushed with it."""
    served = ["--target", target, "--out", f"{folder}-{target}"]
    commands = [
        (["gptoss-tune", "chat", folder], "talk to it"),
        (["gptoss-tune", "serve-config", folder, *served], "serve it"),
    ]
    if len(merged) == 1:
        repo = ["--repo", f"YOU/{Path(folder).resolve().name}"]
        push = ["gptoss-tune", "push", merged[0], "--merged", folder, *repo]
        commands.append((push, "to the Hub"))
    return commands


def _calibration(
    data: str | None,
    steps: int | None,
    adapters: list[str],
    out: Path,
    format: MergeFormat,
    *,
    accept_loss: bool,
) -> Calibration | None:
    """Return the calibration asked for, ``None`` without ``--calibrate``.

    Raises:
        typer.BadParameter: It goes with other options, or with another kind of adapter.
    """
    from gptoss_tune.run.folder import RECIPE, RunFolder
    from gptoss_tune.workflows.calibrate import STEPS, Calibration

    hint = "--calibrate"

    if data is None:
        if steps is not None:
            raise typer.BadParameter(
                f"{steps} steps of what? it needs --calibrate FILE",
                param_hint="--calibrate-steps",
            )
        return None
    if format not in (MergeFormat.mxfp4, MergeFormat.gguf):
        raise typer.BadParameter(
            f"--format {format.value} loses nothing; use it with --format mxfp4 or gguf",
            param_hint=hint,
        )
    if accept_loss:
        raise typer.BadParameter(
            "--accept-loss takes the loss, --calibrate recovers it; give one of the two",
            param_hint=hint,
        )
    if len(adapters) != 1:
        raise typer.BadParameter(
            f"got {len(adapters)} adapters, expected one run; their sum is no run to continue",
            param_hint=hint,
        )
    run = Path(adapters[0])
    if not RunFolder(run).recipe.is_file():
        raise typer.BadParameter(
            f"{run} holds no {RECIPE}; expected a run, whose recipe is trained on. For a bare "
            f"adapter train a recipe with lora.init_from={run} lora.merge_aware=true",
            param_hint=hint,
        )
    return Calibration(run, data, STEPS if steps is None else steps, out)


def show_progress(done: int, total: int) -> None:
    """Show progress on a terminal; stay silent in a pipe."""
    if sys.stderr.isatty():
        end = "\n" if done >= total else "\r"
        sys.stderr.write(f"{done / 1e9:8.2f} of {total / 1e9:.2f} GB{end}")
        sys.stderr.flush()


def print_survival(survival: dict) -> None:
    """Print of which stacks MXFP4 kept the smallest share of the change."""
    from rich.console import Console
    from rich.table import Table

    table = Table("layer", "projection", "|change|", "survived", "error", "worst experts")
    stacks = sorted(survival["stacks"], key=lambda stack: stack["survived"])
    for stack in stacks[:WORST_SHOWN]:
        worst = ", ".join(f"{w['expert']}: {w['survived']:.1%}" for w in stack["worst_experts"])
        projection = stack["module"].rpartition(".")[2]
        table.add_row(
            str(stack["layer"]),
            projection,
            f"{stack['delta_norm']:.4g}",
            f"{stack['survived']:.1%}",
            f"{stack['error']:.1%}",
            worst,
        )
    console = Console()
    console.print(table)
    print_left_out(console, len(stacks), "stacks of experts")
    console.print(f"of the whole change of the experts {survival['total']:.1%} survived MXFP4")
