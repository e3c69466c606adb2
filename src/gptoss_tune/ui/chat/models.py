"""Models to talk to below a folder: adapters of runs, and merged folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.files.regular import open_regular
from gptoss_tune.files.strict_json import LARGEST_FILE, parse_unchecked
from gptoss_tune.report.parts.read import mapping
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.ui.runs.found import folder_named, folders_below, name_of, record_of
from gptoss_tune.weights.adapter_config import ADAPTER_CONFIG

EFFORTS: Final = ("low", "medium", "high")
_MOST: Final = 500


@dataclass(frozen=True)
class Model:
    """A model to talk to.

    Attributes:
        name: Its folder below the server's.
        kind: An adapter of a run, or a whole model.
        effort: What it was trained to answer at.
    """

    name: str
    kind: Literal["adapter", "merged"]
    effort: str


def models_below(root: Path) -> list[Model]:
    """Return the models below a folder."""
    found = []
    for folder in folders_below(root.resolve(), _is_model):
        found.append(_model(root, folder))
        if len(found) == _MOST:
            break
    return sorted(found, key=lambda model: model.name)


def model_named(root: Path, name: str) -> tuple[Model, Path]:
    """Return a model of the list and its folder.

    Raises:
        RecipeError: It is none below ``root``.
    """
    folder = folder_named(root, name)
    if folder is None or not _is_model(folder):
        raise RecipeError(f"{name!r} is no run with an adapter and no merged model below {root}")
    return _model(root, folder), folder


def _model(root: Path, folder: Path) -> Model:
    merged = _is_merged(folder)
    recipe: Mapping[str, Any] = mapping(record_of(folder).get("recipe"))
    effort = mapping(recipe.get("data")).get("reasoning_effort")
    return Model(
        name_of(root, folder),
        "merged" if merged else "adapter",
        effort if effort in EFFORTS else "medium",
    )


def _is_model(folder: Path) -> bool:
    return (RunFolder(folder).adapter / ADAPTER_CONFIG).is_file() or _is_merged(folder)


def _is_merged(folder: Path) -> bool:
    """Return whether a folder holds a whole gpt-oss in safetensors."""
    try:
        with open_regular(folder / "config.json", largest=LARGEST_FILE, folder=folder) as file:
            config = mapping(parse_unchecked(file.read(LARGEST_FILE)))
    except (OSError, ValueError, CheckpointError):
        return False
    return config.get("model_type") == "gpt_oss" and any(folder.glob("*.safetensors"))
