"""``gptoss-tune adapter``: what a run trained, as PEFT or a server reads it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gptoss_tune.cli.arguments import (
    BasePath,
    OtherBase,
    Revision,
    name_and_path,
    refuse_revision_of_nothing,
)
from gptoss_tune.display import visible


class Reader(StrEnum):
    """Who will read an adapter."""

    peft = "peft"
    vllm = "vllm"
    sglang = "sglang"
    llama_cpp = "llama.cpp"


def adapter(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_ADAPTER...",
            help="A run, an adapter or its Hub name; with --bundle several, each RUN or NAME=RUN.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to create for one adapter.")] = None,
    reader: Annotated[Reader, typer.Option("--for", help="Who will read it.")] = Reader.peft,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Folder to create for several adapters, with the files that serve them."),
    ] = None,
    max_loras: Annotated[
        int | None,
        typer.Option(min=1, help="Adapters of the bundle on a GPU at a time; default: all."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs that share the bundle's base; default: 1.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Longest context of the bundle; default: 32768.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="Address the bundle listens on, with a key; default: this machine's."),
    ] = None,
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
    """Write an adapter as PEFT or a server reads it, and print the command that serves it.

    With --bundle: several beside one base, for a server that gives each its name.
    """
    refuse_revision_of_nothing(base, revision)
    server = {"--max-loras": max_loras, "--gpus": gpus, "--context": context, "--host": host}
    if bundle is None:
        one = _the_one(sources, out, server)
        _write_one(
            one,
            reader,
            base,
            revision,
            other_base=other_base,
            uniform=uniform,
            repair=repair,
            compact=compact,
        )
        return
    if out is not None:
        raise typer.BadParameter(
            f"got --out {out} and --bundle {bundle}; one adapter goes to --out, several with the "
            "files that serve them to --bundle",
            param_hint="--bundle",
        )
    if reader is not Reader.vllm:
        raise typer.BadParameter(
            f"--for is {reader.value}; a bundle is for a server that takes a request's adapter by "
            "its name, which is --for vllm here",
            param_hint="--bundle",
        )
    if compact:
        raise typer.BadParameter(
            "vLLM reads factors of all experts; leave it out", param_hint="--compact"
        )
    _write_bundle(
        sources,
        bundle,
        {option: value for option, value in server.items() if value is not None},
        (base, revision),
        other_base=other_base,
        repair=repair,
    )


def _the_one(
    sources: list[str], out: Path | None, server: Mapping[str, int | str | None]
) -> tuple[str, Path]:
    """Return the one adapter and its folder, or refuse what only a bundle can be."""
    if len(sources) > 1:
        raise typer.BadParameter(
            f"got {len(sources)} adapters and no --bundle; several go into one folder with --for "
            "vllm --bundle OUT, one at a time to --out",
            param_hint="RUN_OR_ADAPTER",
        )
    if out is None:
        raise typer.BadParameter("name the folder to create", param_hint="--out")
    for option, value in server.items():
        if value is not None:
            raise typer.BadParameter("is of a --bundle; leave it out", param_hint=option)
    return sources[0], out


def _write_one(
    one: tuple[str, Path],
    reader: Reader,
    base: str | None,
    revision: str | None,
    *,
    other_base: bool,
    uniform: bool,
    repair: bool,
    compact: bool,
) -> None:
    """Write one adapter and print what loads it."""
    from gptoss_tune.files.atomic import refuse_existing
    from gptoss_tune.preflight.finished import look_at_adapters
    from gptoss_tune.weights.adapter_config import SWAPPING_PEFT
    from gptoss_tune.weights.sources import base_name

    source, out = one
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

        command = serve_lora_command(write_lora(opened, out), opened, checkpoint)
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
    if checkpoint.renamed:
        typer.echo(visible(f"other programs need a copy of the base: {checkpoint.convert_command}"))


def _write_bundle(
    sources: list[str],
    out: Path,
    server: Mapping[str, Any],
    base: tuple[str | None, str | None],
    *,
    other_base: bool,
    repair: bool,
) -> None:
    """Write several adapters with the files that serve them."""
    from gptoss_tune.export.serve.adapters.names import adapter_names, served_base_name
    from gptoss_tune.files.atomic import refuse_existing
    from gptoss_tune.preflight.finished import look_at_adapters_of_one_base

    refuse_existing(out)
    names = adapter_names([name_and_path(text) for text in sources])
    slots = server.get("--max-loras", len(names))
    if slots > len(names):
        raise typer.BadParameter(
            f"is {slots}, of {len(names)} adapters; expected at most as many",
            param_hint="--max-loras",
        )
    from gptoss_tune.export.serve.served import Served

    found, revision = look_at_adapters_of_one_base(names, *base, other_base=other_base)
    options = Served(
        served_base_name(found, list(names)),
        found,
        server.get("--context", Served.context),
        server.get("--gpus", Served.gpus),
        host=server.get("--host", Served.host),
    )
    from gptoss_tune.export.serve.adapters.bundle import (
        adapter_notes,
        beside,
        open_adapters,
        write_adapters,
    )
    from gptoss_tune.export.serve.bundle import notes
    from gptoss_tune.weights import open_checkpoint

    checkpoint = open_checkpoint(found, revision)
    adapters = open_adapters(names, checkpoint, other_base=other_base, repair=repair)
    served = beside(options, checkpoint, adapters, slots=slots, revision=revision)
    files = write_adapters(served, checkpoint, adapters, out)
    for note in [*adapter_notes(served, adapters), *notes(served, "vllm")]:
        typer.echo(visible(note))
    typer.echo(f"clients ask for: {', '.join([served.name, *names])}")
    typer.echo(visible(f"{out}: {', '.join(files)}"))


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
