"""What the commands on a finished run are given: looked at before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptoss_tune.error_hints import missing_extra
from gptoss_tune.errors import CheckpointError, MachineError
from gptoss_tune.files.hub_cache import snapshot_of
from gptoss_tune.run.folder import RECIPE, RECORD, RunFolder
from gptoss_tune.run.record import read_record, record_of_adapter
from gptoss_tune.weights.adapter_config import read_adapter_config
from gptoss_tune.weights.config import read_config
from gptoss_tune.weights.gguf.file import gguf_paths, is_gguf, refuse_gguf
from gptoss_tune.weights.layouts.foreign import dead_link, file_for_a_folder
from gptoss_tune.weights.sources import (
    adapter_folder,
    base_name,
    is_name_on_hub,
    is_on_hub,
    resolve,
)


def look_at_adapters(
    adapters: Sequence[str], base: str | None = None, revision: str | None = None
) -> None:
    """Refuse adapters that are not there, or whose base is not.

    A name on the Hub is asked for its few small files only; a base on the Hub is left to the job.

    Raises:
        CheckpointError: No such folder, no adapter in it, a run that has not finished, no base or
            several.
        HubError: The Hub has no such repository, or cannot be asked.
    """
    for adapter in adapters:
        adapter_folder(adapter)
    if base is None and adapters:
        base, revision = base_name(adapters)
    if base is not None:
        look_at_model(base, revision)


def look_at_adapters_of_one_base(
    adapters: Mapping[str, str],
    base: str | None = None,
    revision: str | None = None,
    *,
    other_base: bool = False,
) -> tuple[str, str | None]:
    """Return name and revision of the base of all, or refuse every adapter that has none or is odd.

    Bases are told apart by the content that the runs recorded: two names of the same weights are
    one base, of which the first is taken.

    Args:
        adapters: Runs, folders or names on the Hub, by the names the user will know them under.
        base: Another base than they name; ``revision`` is its own on the Hub.
        revision: See ``base``.
        other_base: Whether adapters that were trained on other weights are wanted.

    Raises:
        CheckpointError: Every adapter that is not there or cannot be exported, with its reason; or
            which of them were trained on which base; or no such base.
        HubError: The Hub has no such repository, or cannot be asked.
    """
    refused, named, contents = [], {}, {}
    for name, adapter in adapters.items():
        try:
            found = base_name([adapter]) if base is None else (base, revision)
            folder = adapter_folder(adapter)
            read_adapter_config(folder)
        except CheckpointError as error:
            refused.append(f"{name}: {error}")
            continue
        named[name] = found
        told = record_of_adapter(folder).get("base", {}).get("fingerprint", {})
        contents[name] = told.get("content") if isinstance(told, dict) else None
    if refused:
        raise CheckpointError(
            f"{len(refused)} of {len(adapters)} adapters cannot be read:\n  " + "\n  ".join(refused)
        )
    known = set(contents.values())
    one = len(set(named.values())) == 1 or (len(known) == 1 and None not in known)
    several = len(known - {None}) > 1 and not other_base
    if several or not one:
        listed = [
            f"{name}: {named[name][0]}" + (f" (content {told[:12]})" if told else "")
            for name, told in contents.items()
        ]
        todo = "bundle those of one base" if several else "give the base of all with --base"
        raise CheckpointError(
            "the adapters were trained on different bases; " + todo + ":\n  " + "\n  ".join(listed)
        )
    found = next(iter(named.values()))
    look_at_model(*found)
    return found


def look_at_model(name: str, revision: str | None = None) -> None:
    """Refuse a whole model that is not there, or is none of gpt-oss.

    Raises:
        CheckpointError: No such folder, or what it holds is no such model.
    """
    if not is_on_hub(name):
        read_config(resolve(name, revision))


def look_at_merged(place: Path, *, compared: bool, served: bool) -> None:
    """Refuse what is no merged folder and no GGUF; a folder is opened by the job itself.

    Args:
        place: The folder, or the file of a GGUF.
        compared: Whether base and adapters are given, to which it is held.
        served: Whether a server of it is asked.

    Raises:
        CheckpointError: It is not there; or it is a GGUF, and a server is to be asked.
        MachineError: The library that makes the keys of a GGUF is not installed.
    """
    if is_gguf(place):
        gguf_paths(place)
        if served:
            raise CheckpointError(
                f"{place}: is a GGUF; a server is compared with the safetensors folder of the same "
                "merge (`merge --format mxfp4` or `bf16`), and a GGUF without --served"
            )
        if compared and (extra := missing_extra("gguf")) is not None:
            raise MachineError(f"{place}: {extra}")
    elif not place.is_dir():
        look_at_model(str(place))


def look_at_either(name: str, base: str | None = None, revision: str | None = None) -> None:
    """Refuse what is neither a whole model nor an adapter; a name on the Hub is left to the job.

    Raises:
        CheckpointError: As the other two.
    """
    if is_name_on_hub(name):
        return
    place = snapshot_of(Path(name).expanduser())
    refuse_gguf(place)
    if place.is_dir() and not (place / "config.json").is_file():
        look_at_adapters([name], base, revision)
    elif place.is_dir():
        look_at_model(name)
    else:
        if place.exists():
            raise CheckpointError(file_for_a_folder(place))
        if (dead := dead_link(place)) is not None:
            raise CheckpointError(dead)
        raise CheckpointError(
            f"{place}: no such folder; expected a run, an adapter, a folder with config.json or a "
            "name on the Hub such as openai/gpt-oss-20b"
        )


def finished_record(run: Path) -> dict[str, Any]:
    """Return the record of a finished run.

    Raises:
        CheckpointError: No run there, or one that is not finished.
    """
    record = read_record(run)
    if not record or not RunFolder(run).recipe.is_file():
        raise CheckpointError(f"{run}: holds no {RECORD} and {RECIPE}; name a run's folder")
    if record.get("status") != "finished":
        raise CheckpointError(
            f"{run}: the run is '{record.get('status')}', not finished; only a finished one has "
            "an adapter to compare with"
        )
    return record
