"""``gptoss-tune adapter``: what a run trained, as PEFT or a server reads it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gptoss_tune.cli.arguments import BasePath, OtherBase, Revision, refuse_revision_of_nothing
from gptoss_tune.display import visible


class Reader(StrEnum):
    """Who will read an adapter."""

    peft = "peft"
    vllm = "vllm"
    sglang = "sglang"
    llama_cpp = "llama.cpp"


def adapter(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run or an adapter.")],
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    reader: Annotated[Reader, typer.Option("--for", help="Who will read it.")] = Reader.peft,
    base: BasePath = None,
    revision: Revision = None,
    other_base: OtherBase = False,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="Fold the scale into B, pad to one rank.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Read factors that PEFT 0.19.0 saved swapped.")
    ] = False,
    compact: Annotated[
        bool,
        typer.Option(
            "--compact", help="Keep to the chosen experts, which gptoss-tune reads, PEFT does not."
        ),
    ] = False,
) -> None:
    """Write an adapter as PEFT or a server reads it, and print the command that serves it."""
    from gptoss_tune.files.atomic import refuse_existing
    from gptoss_tune.preflight.finished import look_at_adapters
    from gptoss_tune.weights.adapter_config import SWAPPING_PEFT
    from gptoss_tune.weights.sources import base_name

    refuse_revision_of_nothing(base, revision)
    refuse_existing(out)
    if reader is Reader.llama_cpp:
        _refuse_useless_for_llama_cpp(uniform=uniform, compact=compact)
    look_at_adapters([source], base, revision)
    from gptoss_tune.export.adapter_formats import serve_command, write_adapter
    from gptoss_tune.weights import open_checkpoint
    from gptoss_tune.weights.adapter import open_adapter

    if base is None:
        base, revision = base_name([source])
    checkpoint = open_checkpoint(base, revision, translate=True)
    opened = open_adapter(source, checkpoint, other_base=other_base, repair=repair, translate=True)
    if reader is Reader.llama_cpp:
        from gptoss_tune.export.gguf.lora import serve_lora_command, write_lora

        command = serve_lora_command(write_lora(opened, out), opened, checkpoint.expert_format)
    else:
        write_adapter(opened, out, reader.value, uniform=uniform, compact=compact)
        command = serve_command(opened, out, reader.value, checkpoint.expert_format)
    if opened.swapped:
        typer.echo(
            f"the factors were swapped, as PEFT {SWAPPING_PEFT} saved them; the copy is right"
        )
    if compact and opened.choice is not None:
        typer.echo(f"gptoss-tune reads {visible(str(out))}; PEFT refuses it by its shapes")
        return
    for line in command.splitlines():
        typer.echo(visible(line))


def _refuse_useless_for_llama_cpp(*, uniform: bool, compact: bool) -> None:
    """Refuse options that change nothing in a GGUF file of factors.

    Raises:
        typer.BadParameter: With the reason.
    """
    if uniform:
        raise typer.BadParameter(
            "llama.cpp scales each tensor by its own rank, and the scale is folded as it is; leave "
            "it out",
            param_hint="--uniform",
        )
    if compact:
        raise typer.BadParameter(
            "llama.cpp reads factors of all experts; leave it out", param_hint="--compact"
        )
