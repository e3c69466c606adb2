"""``gptoss-tune convert`` of a checkpoint: the released layout, and a table of what was read."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gptoss_tune.cli.arguments import size_in_bytes
from gptoss_tune.cli.model.export import show_progress
from gptoss_tune.cli.model.verify import print_checks
from gptoss_tune.display import visible
from gptoss_tune.terminal import next_commands

if TYPE_CHECKING:
    from gptoss_tune.weights import Checkpoint
    from gptoss_tune.workflows.finished_run import Merged

WEIGHTS_FILES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt")
_SHARD_SIZE = "5GB"


def convert_checkpoint(
    source: str,
    out: Path | None,
    revision: str | None,
    tokenizer: Path | None,
    max_shard_size: str | None,
    *,
    as_json: bool,
) -> None:
    """Write a checkpoint in the released layout, and tell what was read as what.

    Raises:
        typer.BadParameter: There is no ``out``, or the size of a shard is none.
        CheckpointError: It cannot be read, or needs no conversion.
    """
    from gptoss_tune.files.atomic import refuse_existing, to_json
    from gptoss_tune.weights.sources import is_on_hub, resolve

    largest = size_in_bytes(max_shard_size or _SHARD_SIZE)
    if not is_on_hub(source):
        resolve(source, revision)
    if out is None:
        raise typer.BadParameter(
            f"{source} is a checkpoint, which is written to a folder; name one", param_hint="--out"
        )
    refuse_existing(out)
    from gptoss_tune.workflows.convert_base import convert_base, open_source, rounded_dtypes

    base = open_source(source, revision, tokenizer)
    done = convert_base(base, out, max_shard_size=largest, progress=show_progress)
    rounded = rounded_dtypes(base)
    if as_json:
        read_as = [asdict(each) for each in base.read_as]
        checked = None if done.verification is None else done.verification.as_dict()
        told = {**done.report, "out": str(out), "read_as": read_as, "rounded": rounded}
        sys.stdout.write(to_json({**told, "verification": checked}))
        return
    _print(base, done, rounded)


def _print(base: Checkpoint, done: Merged, rounded: dict[str, int]) -> None:
    """Print what was read as what, what was added and checked, and what comes next."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stored as", "tensors", "of the release")
    for each in base.read_as:
        table.add_row(each.stored_as, str(each.stored), str(each.read))
    table.add_row("all", str(sum(e.stored for e in base.read_as)), str(len(base.names())))
    Console().print(table)
    for dtype, count in rounded.items():
        typer.echo(f"{count} tensors of {dtype} were rounded to bfloat16")
    if "completed" in done.report:
        typer.echo(
            f"the source has no {', '.join(done.report['completed'])}; the result has the "
            "release's settings there"
        )
    if done.verification is not None:
        print_checks(done.verification)
    size = done.report["bytes"] / 1e9
    typer.echo(f"{visible(str(done.folder))}: {base.expert_format}, {size:.2f} GB")
    following = [
        (["gptoss-tune", "chat", str(done.folder)], "talk to it"),
        (["gptoss-tune", "init", "--model", str(done.folder)], "a recipe that trains it"),
    ]
    for line in next_commands(following):
        typer.echo(visible(line))
