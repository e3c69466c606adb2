"""``gptoss-tune verify``, and how a verification is printed."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptoss_tune.cli.arguments import (
    AsJson,
    BasePath,
    Device,
    OtherBase,
    Revision,
    path_and_weight,
    refuse_revision_of_nothing,
)
from gptoss_tune.display import visible
from gptoss_tune.errors import CheckpointError
from gptoss_tune.terminal import WORST_SHOWN

if TYPE_CHECKING:
    from rich.console import Console

    from gptoss_tune.export.verify.completions import CompletionsServer
    from gptoss_tune.export.verify.verify import Verification


def verify(
    folder: Annotated[
        Path | None, typer.Argument(help="A merged checkpoint or a GGUF; none with --bundle.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="What was merged: run, adapter or its Hub name, PATH or PATH=WEIGHT; repeatable."
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="What `adapter --bundle` wrote: each of its names is asked for."),
    ] = None,
    base: BasePath = None,
    revision: Revision = None,
    other_base: OtherBase = False,
    logits: Annotated[bool, typer.Option(help="Compare logits too.")] = True,
    served: Annotated[
        str | None, typer.Option(help="URL of a server that should serve this model.")
    ] = None,
    served_name: Annotated[
        str | None, typer.Option(help="Name it is served under; default: the folder.")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Variable that holds the server's API key; default: VLLM_API_KEY, if set.",
        ),
    ] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Check that a merged checkpoint, or a server of it, holds what was trained.

    With --bundle: that a server gives each adapter under its name, and the base under its own.
    Exit code 4: it cannot be told whether the server has the tuned model.
    """
    from gptoss_tune.files.atomic import to_json
    from gptoss_tune.preflight.finished import look_at_adapters, look_at_merged

    refuse_revision_of_nothing(base, revision)
    for option, value in (("--served-name", served_name), ("--api-key-env", api_key_env)):
        if served is None and value is not None:
            raise typer.BadParameter(
                f"'{value}' of which server? it needs --served URL", param_hint=option
            )
    if bundle is not None:
        _refuse_beside_bundle(folder, adapter, served_name)
        _verify_bundle(
            bundle,
            served,
            api_key_env,
            (base, revision),
            other_base=other_base,
            device=device,
            as_json=as_json,
        )
        return
    if folder is None:
        raise typer.BadParameter("name a merged checkpoint, or --bundle", param_hint="FOLDER")
    named = [path_and_weight(text) for text in adapter or ()]
    look_at_adapters([path for path, _ in named], base, revision)
    compared = bool(named) or base is not None
    look_at_merged(folder, compared=compared, served=served is not None)
    from gptoss_tune.export.verify.server import ask_server, verify_served
    from gptoss_tune.export.verify.verify import Check
    from gptoss_tune.export.verify.verify import verify as run_verify
    from gptoss_tune.weights import open_checkpoint
    from gptoss_tune.workflows import finished_run

    checkpoint, weighted = None, []
    if compared:
        checkpoint, weighted = finished_run.open_adapters(
            named, base, revision, other_base=other_base
        )
    answers = None
    if served is not None:
        if checkpoint is None:
            raise typer.BadParameter(
                "--served needs --adapter, to know the base", param_hint="--served"
            )
        # The server first: one that is not there is known before the weights are read.
        answers = ask_server(_server(served, served_name or str(folder), api_key_env))
    result = run_verify(folder, checkpoint, weighted, logits=logits, device=device)
    if answers is not None and checkpoint is not None and result.passed:
        check = verify_served(answers, open_checkpoint(folder), checkpoint, device=device)
        result = replace(result, checks=(*result.checks, check), server=served)
    elif answers is not None:
        check = Check("served", None, "not compared: the folder itself does not hold")
        result = replace(result, checks=(*result.checks, check))
    finished_run.note(named, "verify", result)
    if as_json:
        sys.stdout.write(to_json(result.as_dict()))
    else:
        print_checks(result)
    result.require()


def _refuse_beside_bundle(
    folder: Path | None, adapter: list[str] | None, served_name: str | None
) -> None:
    """Refuse what names a second thing to verify beside a bundle."""
    others = (("FOLDER", folder), ("--adapter", adapter), ("--served-name", served_name))
    for option, value in others:
        if value:
            raise typer.BadParameter(
                "a bundle has its own adapters and names; leave it out", param_hint=option
            )


def _verify_bundle(
    folder: Path,
    url: str | None,
    api_key_env: str | None,
    other: tuple[str | None, str | None],
    *,
    other_base: bool,
    device: str,
    as_json: bool,
) -> None:
    """Ask a server for every name of a bundle, and print whether each is what it should be."""
    from gptoss_tune.files.atomic import to_json
    from gptoss_tune.preflight.finished import look_at_model

    if url is None:
        raise typer.BadParameter(
            "the files of a bundle were checked when it was written; to ask its server give "
            "--served URL",
            param_hint="--bundle",
        )
    from gptoss_tune.export.serve.adapters.bundle import NAMES, open_bundled, read_bundle
    from gptoss_tune.export.verify.served_adapters import ask_each, local_answers, verify_each
    from gptoss_tune.export.verify.verify import Verification
    from gptoss_tune.weights import open_checkpoint

    told = read_bundle(folder)
    base, revision = (told.base, told.revision) if other[0] is None else (other[0], other[1])
    try:
        look_at_model(base, revision)
    except CheckpointError as error:
        if other[0] is not None:
            raise
        raise CheckpointError(
            f"{error}\n{folder / NAMES} names it as the base; where that lies elsewhere on this "
            "machine, give its folder with --base"
        ) from None
    checkpoint = open_checkpoint(base, revision)
    adapters = open_bundled(told, checkpoint, other_base=other_base)
    # The server first: one that is not there is known before the weights are read.
    answers = ask_each(_server(url, told.base_name, api_key_env), [told.base_name, *adapters])
    checks = verify_each(
        answers, local_answers(checkpoint, told.base_name, adapters, device=device)
    )
    result = Verification(str(folder), tuple(checks), server=url)
    if as_json:
        sys.stdout.write(to_json(result.as_dict()))
    else:
        print_checks(result)
    result.require()


def _server(url: str, model: str, api_key_env: str | None) -> CompletionsServer:
    """Return the server to ask, with the key that a variable of the environment holds."""
    from gptoss_tune.export.verify.completions import CompletionsServer

    key = os.environ.get(api_key_env or "VLLM_API_KEY", "").strip()
    if api_key_env is not None and not key:
        raise typer.BadParameter(
            f"the environment has no variable {api_key_env}, or it is empty; set it to the key",
            param_hint="--api-key-env",
        )
    return CompletionsServer(url, model, key or None)


def print_checks(result: Verification) -> None:
    """Print a verification as tables: a line for each check, and the weights held worst."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    words = {True: "ok", False: "RED", None: "not done"}
    colours = {True: "green", False: "bold red", None: "yellow"}
    console = Console()
    if result.targets:
        table = Table("weight", "|change|", "held", "can be held", "probe")
        worst = sorted(result.targets, key=lambda target: target.held - target.holdable)
        for target in worst[:WORST_SHOWN]:
            numbers = (target.held, target.holdable, target.probe)
            shares = [f"{share:.1%}" for share in numbers]
            table.add_row(Text(visible(target.module)), f"{target.delta_norm:.4g}", *shares)
        console.print(table)
        print_left_out(console, len(result.targets), "changed weights")
    for kinds in [check.figures["kinds"] for check in result.checks if "kinds" in check.figures]:
        table = Table("tensors", "count", "type", "compared", "max difference")
        for line in kinds:
            furthest = f"{line['max_difference']:.3g}"
            about = (line["kind"], str(line["tensors"]), line["type"], line["compared"], furthest)
            table.add_row(*about)
        console.print(table)
    table = Table("check", "", "")
    for check in result.checks:
        answer = Text(words[check.passed], style=colours[check.passed])
        table.add_row(check.name, answer, Text(visible(check.detail)))
    console.print(table)


def print_left_out(console: Console, total: int, what: str) -> None:
    """Say how many rows a table of the worst leaves out, if any."""
    if total > WORST_SHOWN:
        console.print(f"the worst {WORST_SHOWN} of {total} {what}; --json shows all")
