"""Where checkpoints and adapters lie: a folder here, or a name on the Hub; no torch.

What is named wrong is found here before a library that computes is imported, and before anything
large is downloaded: a name is resolved to a folder, a run to the adapter in it, an adapter to its
base.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from gptoss_tune.errors import CheckpointError, HubError
from gptoss_tune.files.hub_cache import snapshot_of
from gptoss_tune.run.checkpoints import published
from gptoss_tune.run.folder import ADAPTER, RUN_CARD
from gptoss_tune.run.record import record_of_adapter
from gptoss_tune.weights.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    find_adapter,
    read_adapter_config,
)
from gptoss_tune.weights.gguf.file import refuse_gguf
from gptoss_tune.weights.layouts.foreign import (
    dead_link,
    file_for_a_folder,
    holds_a_model,
    without_config,
)

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB_FILES = (
    *("*.safetensors", "*.json", "*.jinja", "LICENSE*", "NOTICE*", "USAGE_POLICY*"),
    "README.md",  # it says under which licence the weights stand
)
_HUB_OTHER_LAYOUTS = ["original/*", "metal/*"]
_ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, RUN_CARD, "config.json")


def resolve(name_or_path: str | Path, revision: str | None = None) -> Path:
    """Return the local folder of a checkpoint, downloading it when it is a name on the Hub."""
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"{path} is a folder, which has no revision '{revision}'; remove the revision or "
                "name a repository on the Hub"
            )
        return snapshot_of(path)
    refuse_gguf(path)
    if path.exists():
        raise CheckpointError(file_for_a_folder(path))
    if (dead := dead_link(path)) is not None:
        raise CheckpointError(dead)
    if not HUB_NAME.fullmatch(str(name_or_path)):
        raise CheckpointError(
            f"{path}: no such folder; expected a folder with config.json or a name on the Hub "
            "such as openai/gpt-oss-20b"
        )
    return download(str(name_or_path), revision, _HUB_FILES)


def called(name_or_path: str | Path, folder: Path) -> str:
    """Return the name by which others find a checkpoint that ``resolve`` found in ``folder``.

    It is what the user called it, but for a repository in the Hub's cache, whose snapshot no other
    program looks for.
    """
    named = Path(os.path.expanduser(name_or_path))
    return str(folder) if named.is_dir() and snapshot_of(named) != named else str(name_or_path)


def is_on_hub(name: str) -> bool:
    """Return whether a base is a name on the Hub and nothing that lies here."""
    return HUB_NAME.fullmatch(name) is not None and not os.path.lexists(os.path.expanduser(name))


def download(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder of those files of a Hub repository whose names match ``patterns``.

    Raises:
        HubError: No such repository or revision, no access, or no answer.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=_HUB_OTHER_LAYOUTS,
        )
    except GatedRepoError as error:
        reason = "it is gated: accept its licence on the Hub and log in with `hf auth login`"
        raise HubError(f"cannot download '{name}': {reason}") from error
    except RepositoryNotFoundError as error:
        reason = "no folder and no repository has this name, or it is private and you are not "
        raise HubError(f"cannot download '{name}': {reason}logged in (`hf auth login`)") from error
    except RevisionNotFoundError as error:
        raise HubError(f"'{name}' has no revision '{revision}' on the Hub") from error
    except (LocalEntryNotFoundError, HTTPError, HfHubHTTPError, OSError) as error:
        reason = "no folder has this name, it is not in the cache and the Hub did not answer"
        raise HubError(f"cannot download '{name}': {reason} ({type(error).__name__})") from error
    return Path(folder)


def adapter_folder(path: str | Path) -> Path:
    """Return the folder with ``adapter_config.json`` for a run or an adapter.

    Args:
        path: A run's or an adapter's folder, or the name of an adapter on the Hub.

    Raises:
        CheckpointError: Neither is there.
        HubError: No such repository, no access, or no answer.
    """
    named, path = str(path), Path(os.path.expanduser(path))
    folder = find_adapter(path)
    if folder is not None:
        return folder
    if is_name_on_hub(named):
        return _downloaded(named)
    refuse_gguf(path)
    if not path.is_dir():
        raise CheckpointError(
            dead_link(path)
            or (file_for_a_folder(path) if path.exists() else None)
            or f"{path}: no such folder; expected a run or an adapter"
        )
    checkpoints = published(path)
    if checkpoints:
        raise CheckpointError(
            f"{path}: the run has not finished and has no adapter yet; resume it, or name its "
            f"newest checkpoint {checkpoints[0]}"
        )
    if holds_a_model(path):
        raise CheckpointError(without_config(path))
    raise CheckpointError(
        f"{path}: holds no {ADAPTER_CONFIG}, nor does its folder {ADAPTER}/; expected a run of "
        "gptoss-tune or a PEFT adapter"
    )


def is_name_on_hub(path: str | Path) -> bool:
    """Return whether a text names a repository on the Hub and nothing on this machine.

    ``runs/mine`` beside a folder ``runs`` is a run that is not there, and no name on the Hub.
    """
    place = Path(path)
    return HUB_NAME.fullmatch(str(path)) is not None and not place.parent.exists()


def is_adapter(path: str | Path) -> bool:
    """Return whether a folder, or a repository on the Hub, holds an adapter and no whole model.

    Raises:
        HubError: No such repository, no access, or no answer.
    """
    place = snapshot_of(Path(os.path.expanduser(path)))
    if is_name_on_hub(path):
        place = download(str(path), None, _ADAPTER_FILES)
        return (place / ADAPTER_CONFIG).is_file() and not (place / "config.json").is_file()
    return place.is_dir() and not (place / "config.json").is_file()


def _downloaded(name: str) -> Path:
    """Return the folder of an adapter on the Hub, its own files alone."""
    folder = download(name, None, _ADAPTER_FILES)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"'{name}' on the Hub holds no {ADAPTER_CONFIG}; expected an adapter, not a whole model"
        )
    if (folder / "config.json").is_file():
        raise CheckpointError(
            f"'{name}' on the Hub holds {ADAPTER_CONFIG} beside a whole model; which of the two is "
            "meant cannot be told, remove one of them there"
        )
    return folder


def base_name(adapters: Iterable[str | Path]) -> tuple[str, str | None]:
    """Return name and revision of the base that the adapters were trained on.

    Raises:
        CheckpointError: The adapters name no base, or different ones.
    """
    named: dict[tuple[str, str | None], Path] = {}
    for path in adapters:
        folder = adapter_folder(path)
        config = read_adapter_config(folder)
        name = record_of_adapter(folder).get("base", {}).get("name") or config.get(
            "base_model_name_or_path"
        )
        if not name:
            raise CheckpointError(f"{folder / ADAPTER_CONFIG}: names no base; give it with --base")
        named[(name, config.get("revision"))] = folder
    if len(named) != 1:
        listed = ", ".join(f"{folder}: {name}" for (name, _), folder in named.items())
        raise CheckpointError(
            f"the adapters were trained on different bases ({listed}); give --base"
        )
    return next(iter(named))
