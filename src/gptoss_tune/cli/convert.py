"""``gptoss-tune convert``: a recipe of another tool, or a checkpoint in another layout.

What the source is decides: a file is a configuration, a folder or a name on the Hub a checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gptoss_tune.cli.model.convert import WEIGHTS_FILES, convert_checkpoint
from gptoss_tune.cli.recipe.from_other_tools import convert_recipe

_CONFIGURATIONS = (".yml", ".yaml", ".json", ".py", ".toml", ".sh")
_RECIPE, _CHECKPOINT = "A recipe", "A checkpoint"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="axolotl.yml, llamafactory.yaml or a file of TRL's scripts; or a checkpoint in "
            "another layout: its folder, or its name on the Hub.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The recipe to write (default: print it), or the folder to create."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: what became of what.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Train this instead: a short name as of init, or a folder.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus",
            min=1,
            max=1024,
            help="GPUs that would be launched; default: 1.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    dataset_info: Annotated[
        Path | None,
        typer.Option(
            "--dataset-info",
            help="LLaMA-Factory's dataset_info.json, if elsewhere.",
            rich_help_panel=_RECIPE,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace a recipe of that name.", rich_help_panel=_RECIPE),
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision", help="Revision of a checkpoint on the Hub.", rich_help_panel=_CHECKPOINT
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            metavar="DIR",
            help="Folder of the tokenizer's files, chat template and licence, if elsewhere.",
            rich_help_panel=_CHECKPOINT,
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            help="Largest file: bytes, or 5GB (default), 500MB, 2GiB.",
            rich_help_panel=_CHECKPOINT,
        ),
    ] = None,
) -> None:
    """Write a recipe from another tool's file, or a checkpoint in the released layout.

    A recipe: what became of each key is told; without --out it is printed, and the rest goes to
    stderr. A checkpoint: other names, experts one by one, OpenAI's own layout; its values stay,
    MXFP4 as MXFP4 and bf16 as bf16 (merge --base --format changes that).
    """
    of_recipe = {
        "--model": model is not None,
        "--gpus": gpus is not None,
        "--dataset-info": dataset_info is not None,
        "--force": force,
    }
    of_checkpoint = {
        "--revision": revision is not None,
        "--tokenizer": tokenizer is not None,
        "--max-shard-size": max_shard_size is not None,
    }
    if _is_checkpoint(source):
        _refuse(of_recipe, source, "a checkpoint", "a recipe")
        convert_checkpoint(source, out, revision, tokenizer, max_shard_size, as_json=as_json)
    else:
        _refuse(of_checkpoint, source, "a file of another tool", "a checkpoint")
        convert_recipe(
            Path(source), out, model, gpus or 1, dataset_info, force=force, as_json=as_json
        )


def _is_checkpoint(source: str) -> bool:
    """Return whether a source is weights and no configuration, there or not."""
    path = Path(os.path.expanduser(source))
    if path.is_file():
        return path.suffix in WEIGHTS_FILES
    return path.is_dir() or path.suffix not in _CONFIGURATIONS


def _refuse(options: dict[str, bool], source: str, got: str, other: str) -> None:
    """Refuse options that the other kind of source has.

    Raises:
        typer.BadParameter: Names them all.
    """
    given = [option for option, was_given in options.items() if was_given]
    if given:
        raise typer.BadParameter(
            f"{source} is {got}; {' and '.join(given)} {'are' if len(given) > 1 else 'is'} for "
            f"{other}, leave {'them' if len(given) > 1 else 'it'} out",
            param_hint=given[0],
        )
