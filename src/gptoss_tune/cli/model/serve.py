"""``gptoss-tune serve-config`` and ``gptoss-tune push``: serving files, and the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import BasePath, Revision, refuse_revision_of_nothing
from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.files.hub_cache import name_of_snapshot

if TYPE_CHECKING:
    from gptoss_tune.export.serve.served import Served
    from gptoss_tune.plan.gpus import Gpu


class ServeTarget(StrEnum):
    """Where a model can be served."""

    vllm = "vllm"
    sglang = "sglang"
    transformers = "transformers"
    triton_server = "triton-server"
    tensorrt_llm = "tensorrt-llm"
    azure_ml = "azure-ml"
    nim = "nim"
    ollama = "ollama"
    lm_studio = "lm-studio"
    llama_cpp = "llama.cpp"


def serve_config(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_RUN",
            help="A merged folder, a run, an adapter or its Hub name; for ollama, lm-studio and "
            "llama.cpp a GGUF.",
        ),
    ],
    target: Annotated[ServeTarget, typer.Option(help="Where to serve.")],
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    name: Annotated[str, typer.Option(help="Name that clients use.")] = "gpt-oss-tuned",
    context: Annotated[int, typer.Option(min=1, help="Longest context in tokens.")] = 32_768,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that share the weights.")] = 1,
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than this machine's needs a key.")
    ] = "127.0.0.1",
    gpu: Annotated[
        str | None,
        typer.Option(help="GPU that it is served on, such as h100-80gb; refused if too small."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="Container image with tag or digest instead of the pinned one."),
    ] = None,
    instructions: Annotated[
        str | None, typer.Option(help="Developer instructions of every conversation, for ollama.")
    ] = None,
    base: BasePath = None,
    revision: Revision = None,
) -> None:
    """Write the commands and files that serve a model."""
    if target in _OF_GGUF:
        useless = {"--gpus": gpus != 1, "--gpu": gpu, "--base": base}
        _refuse_useless(target, {**useless, "--revision": revision})
        options = {"host": host, "image": image, "instructions": instructions}
        _laptop_bundle(source, target, out, name, context, options)
        return
    _refuse_useless(target, {"--instructions": instructions})
    _refuse_gguf(source, target)
    source = name_of_snapshot(source)
    from gptoss_tune.export.serve.bundle import notes, write_bundle
    from gptoss_tune.export.serve.served import Served
    from gptoss_tune.export.serve.sizes.memory import stored_bytes
    from gptoss_tune.files.atomic import refuse_existing
    from gptoss_tune.preflight.finished import look_at_adapters, look_at_model

    refuse_revision_of_nothing(base, revision)
    refuse_existing(out)
    # What needs no weights is refused before torch is imported.
    kind, unknown = _card(gpu)
    try:
        options = Served(name, source, context, gpus, host=host, gpu=kind, image=image)
    except CheckpointError as others:
        raise CheckpointError("\n".join(filter(None, (unknown, str(others))))) from None
    if unknown:
        raise CheckpointError(unknown)
    if (Path(source) / "config.json").is_file():
        look_at_model(source)
    else:
        look_at_adapters([source], base, revision)
    from gptoss_tune.weights import open_checkpoint

    if (Path(source) / "config.json").is_file():
        if base is not None:
            raise typer.BadParameter(
                f"{source} is a whole model, which needs no base; leave it out", param_hint="--base"
            )
        checkpoint = open_checkpoint(source)  # a damaged folder is refused here, not by the server
        weights, experts = stored_bytes(checkpoint)
        served = replace(options, config=checkpoint.config, weights=weights, expert_weights=experts)
        files = write_bundle(served, target.value, out)
    else:
        served, files = _adapter_bundle(source, target, out, options, base, revision)
    for note in notes(served, target.value):
        typer.echo(note)
    typer.echo(f"{out}: {', '.join(files)}")


def _card(name: str | None) -> tuple[Gpu | None, str | None]:
    """Return the card of ``--gpu``, or what is wrong with it: the other mistakes go beside that."""
    from gptoss_tune.plan.gpus import card

    try:
        return card(name) if name else None, None
    except RecipeError as unknown:
        return None, str(unknown)


_OF_GGUF = (ServeTarget.ollama, ServeTarget.lm_studio, ServeTarget.llama_cpp)


def _refuse_useless(target: ServeTarget, given: Mapping[str, object]) -> None:
    """Refuse options that mean nothing to a target.

    Raises:
        typer.BadParameter: One was given.
    """
    for option, value in given.items():
        if value:
            raise typer.BadParameter(f"{target.value} has no use for it", param_hint=option)


def _refuse_gguf(source: str, target: ServeTarget) -> None:
    """Refuse a GGUF for a server that reads safetensors.

    Raises:
        typer.BadParameter: With the way out.
    """
    from gptoss_tune.weights.gguf.file import is_gguf

    if is_gguf(Path(source)):
        raise typer.BadParameter(
            f"{source} is a GGUF, which {target.value} is not given here; serve it with --target "
            "ollama, lm-studio or llama.cpp, or merge for this one: gptoss-tune merge RUN --format "
            "mxfp4 --out DIR",
            param_hint="MODEL_OR_RUN",
        )


def _laptop_bundle(
    source: str,
    target: ServeTarget,
    out: Path,
    name: str,
    context: int,
    options: Mapping[str, str | None],
) -> None:
    """Write a bundle for a GGUF; ``options`` are further attributes of ``LaptopModel``.

    Raises:
        typer.BadParameter: The source is none, with the way out.
    """
    from gptoss_tune.export.serve.laptop.bundle import laptop_notes, write_laptop_bundle
    from gptoss_tune.export.serve.laptop.model import open_laptop_model
    from gptoss_tune.files.atomic import refuse_existing
    from gptoss_tune.run.record import prompts_trained_on
    from gptoss_tune.weights.gguf.file import is_gguf
    from gptoss_tune.weights.sources import is_name_on_hub

    refuse_existing(out)
    path = Path(source)
    whole = (path / "config.json").is_file()
    if not path.exists() and not is_name_on_hub(source):
        raise typer.BadParameter(
            f"nothing is there: {source}; expected a GGUF or a folder with one",
            param_hint="MODEL_OR_RUN",
        )
    if not is_gguf(path):
        made = "--base" if whole else ""
        raise typer.BadParameter(
            f"{source} is no GGUF, which {target.value} runs; make one: "
            + " ".join(filter(None, ["gptoss-tune merge", made, source]))
            + " --format gguf --out DIR (gguf-bf16 keeps bf16 experts as they are)",
            param_hint="MODEL_OR_RUN",
        )
    told = prompts_trained_on(path if path.is_dir() else path.parent)
    model = open_laptop_model(source, told, name, context, **options)
    files = write_laptop_bundle(model, target.value, out)
    for note in laptop_notes(model, target.value):
        typer.echo(note)
    typer.echo(f"{out}: {', '.join(files)}")


def _adapter_bundle(
    source: str,
    target: ServeTarget,
    out: Path,
    options: Served,
    base: str | None,
    revision: str | None,
) -> tuple[Served, list[str]]:
    """Write a bundle for base + adapter, with the adapter in the server's form inside it."""
    from gptoss_tune.export.serve.adapters.bundle import (
        adapter_notes,
        beside,
        open_adapters,
        write_adapters,
    )
    from gptoss_tune.export.serve.adapters.names import served_base_name
    from gptoss_tune.export.serve.bundle import bundle_files
    from gptoss_tune.weights import open_checkpoint
    from gptoss_tune.weights.sources import base_name

    if base is None:
        base, revision = base_name([source])
    checkpoint = open_checkpoint(base, revision)
    adapters = open_adapters({options.name: source}, checkpoint)
    own = options.name[:27].rstrip("-")
    # With ``own`` taken as well it is NAME-base, or the next that is free.
    named = replace(options, path=base, name=served_base_name(own, [options.name, own]))
    served = beside(named, checkpoint, adapters, revision=revision)
    if target is not ServeTarget.vllm:
        bundle_files(served, target.value)  # says that it serves no adapter
    files = write_adapters(served, checkpoint, adapters, out)
    for note in adapter_notes(served, adapters):
        typer.echo(note)
    return served, files


def push(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_ADAPTER", help="A run or an adapter.")],
    repo: Annotated[str, typer.Option(help="owner/name on the Hub.")],
    merged: Annotated[
        Path | None, typer.Option(help="Upload this merged folder instead of the adapter.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Public; private otherwise.")] = False,
    base: BasePath = None,
    revision: Revision = None,
    base_name: Annotated[
        str | None, typer.Option(help="The base's name on the Hub, when trained from a folder.")
    ] = None,
    logits: Annotated[bool, typer.Option(help="Compare logits of a merged folder first.")] = True,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Replace what others put there, where it matters to what is pushed."
        ),
    ] = False,
    replace_card: Annotated[
        bool,
        typer.Option("--replace-card", help="Replace a hand-written README.md, not add to it."),
    ] = False,
) -> None:
    """Verify a run's adapter or merged model and upload it with a model card.

    The repository then holds exactly what was verified; files that do not matter to it stay.
    """
    from gptoss_tune.export.hub.name import check_login, check_name
    from gptoss_tune.preflight.finished import look_at_adapters, look_at_merged, look_at_model
    from gptoss_tune.weights.gguf.file import is_gguf

    refuse_revision_of_nothing(base, revision)
    check_name(repo)
    look_at_adapters([source], base, revision)
    if merged is not None and is_gguf(merged):
        look_at_merged(merged, compared=True, served=False)
    elif merged is not None:
        look_at_model(str(merged))
    check_login(repo)
    from gptoss_tune.export.hub.repository import listed
    from gptoss_tune.workflows import finished_run

    done = finished_run.push(
        source,
        repo,
        merged=merged,
        public=public,
        base=base,
        revision=revision,
        base_name=base_name,
        logits=logits,
        replace=replace,
        replace_card=replace_card,
    )
    if done.deleted:
        typer.echo(f"deleted in the same commit: {listed(done.deleted)}")
    if done.kept:
        typer.echo(f"kept, of others: {listed(done.kept)}")
    typer.echo(f"{done.url}: {done.files} files, commit {done.commit}")
