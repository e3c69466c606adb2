"""A bundle for vLLM: one base and the adapters beside it, each under its own name.

Every adapter is written in the same form: scale inside B, one rank, factors of all experts. vLLM
asks for less (an adapter may have a smaller rank than ``--max-lora-rank``, and other layers than
its neighbour: what it lacks is left at zero), but reads this alike in every release, patterns or
not.

One folder holds the adapters, the commands that serve them and what a client asks for; it becomes
visible when all of it is there. What vLLM does with it was read from the source of its release
``sizes.lora.VLLM``; nothing here was run on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.adapter_formats import (
    largest_rank,
    refuse_unreadable,
    vllm_rank,
    write_adapter,
)
from gptoss_tune.export.serve.bundle import bundle_files, write_files
from gptoss_tune.export.serve.deployment.adapters import Adapters
from gptoss_tune.export.serve.served import Served, local
from gptoss_tune.export.serve.sizes.lora import VLLM, cut_alike, slot_bytes
from gptoss_tune.export.serve.sizes.memory import stored_bytes
from gptoss_tune.export.serve.vllm import ADAPTERS
from gptoss_tune.files.atomic import staged, to_json
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.run.record import trained_merge_aware
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter import Adapter, open_adapter

NAMES = "names.json"
_COSTLY = 2  # times the memory, from which on padding is worth a word


def beside(
    options: Served,
    base: Checkpoint,
    adapters: Mapping[str, Adapter],
    *,
    slots: int | None = None,
    revision: str | None = None,
) -> Served:
    """Return the base with its adapters, as a server is told of them.

    Args:
        options: The base's name and place, GPUs, context and address.
        base: The base.
        adapters: By the name they are served under.
        slots: Adapters on a GPU at a time; ``None``: all.
        revision: The base's own on the Hub.
    """
    config, packed = base.config, base.expert_format == "mxfp4"
    ranks = {name: largest_rank(each) for name, each in adapters.items()}
    on_experts = any(t.experts for each in adapters.values() for t in each.targets.values())
    by_expert = on_experts and not cut_alike(options.gpus, packed=packed)
    rank = vllm_rank(ranks.values())
    size = slot_bytes(config, rank, options.gpus, packed=packed, by_expert=by_expert)
    whole = slot_bytes(config, rank, packed=packed)
    weights, experts = stored_bytes(base)
    return replace(
        options,
        config=config,
        weights=weights,
        expert_weights=experts,
        adapters=Adapters(ranks, rank, slots or len(ranks), size, by_expert, revision, whole),
    )


def adapter_notes(served: Served, adapters: Mapping[str, Adapter]) -> list[str]:
    """Return what a user has to know of the adapters, a sentence each."""
    told = served.adapters
    if told is None:
        return []
    found = [
        f"--max-loras {told.slots} of rank {told.rank} takes {told.bytes_on_gpu / 1e9:.2f} GB on "
        f"{'the GPU' if served.gpus == 1 else f'each of {served.gpus} GPUs'}"
    ]
    largest = [name for name, rank in told.ranks.items() if vllm_rank([rank]) == told.rank]
    rest = [rank for name, rank in told.ranks.items() if name not in largest]
    if rest and told.rank >= _COSTLY * vllm_rank(rest):
        less = vllm_rank(rest)
        found.append(
            f"because of {', '.join(largest)} (rank {max(told.ranks.values())}) every slot is "
            f"{told.rank / less:g} times as large; at rank {less} they take "
            f"{told.bytes_on_gpu * less / told.rank / 1e9:.2f} GB: serve it apart, or train it at "
            "a smaller lora.rank"
        )
    aware = [name for name, each in adapters.items() if trained_merge_aware(each.path)]
    if aware:
        found.append(
            f"trained merge-aware, on weights rounded with the adapter: {', '.join(aware)}; "
            "beside the base nothing is rounded again, merge it to serve what was trained"
        )
    if told.by_expert:
        found.append(
            f"--enable-expert-parallel is set: over {served.gpus} GPUs vLLM cuts MXFP4 experts at "
            "other rows than an adapter's factors, and divides whole experts alike"
        )
    return found


def open_adapters(
    sources: Mapping[str, str], base: Checkpoint, *, other_base: bool = False, repair: bool = False
) -> dict[str, Adapter]:
    """Open adapters to be served beside ``base``, and refuse all that cannot be, at once.

    Args:
        sources: Runs, folders or names on the Hub, by the names they are served under.
        base: The base of all.
        other_base: Accept adapters that were trained on other weights.
        repair: Read factors that PEFT 0.19.0 saved swapped.

    Raises:
        CheckpointError: With the reason of every adapter that is refused.
    """
    opened: dict[str, Adapter] = {}
    refused: list[str] = []
    for name, source in sources.items():
        try:
            adapter = open_adapter(
                source, base, other_base=other_base, repair=repair, translate=True
            )
            refuse_unreadable(adapter, "vllm")
        except CheckpointError as error:
            refused.append(f"{name}: {error}")
            continue
        opened[name] = adapter
    by_content: dict[str, list[str]] = {}
    for name, adapter in opened.items():
        by_content.setdefault(adapter.digest, []).append(name)
    refused += [
        f"{', '.join(names)}: are the same adapter, byte for byte; name it once"
        for names in by_content.values()
        if len(names) > 1
    ]
    if refused:
        raise CheckpointError(
            f"{len(refused)} of {len(sources)} adapters cannot be served beside {base.path}:\n  "
            + "\n  ".join(refused)
            if len(sources) > 1
            else refused[0].removeprefix(f"{next(iter(sources))}: ")
        )
    return opened


def write_adapters(
    served: Served, base: Checkpoint, adapters: Mapping[str, Adapter], out: Path
) -> list[str]:
    """Write the bundle to the new folder ``out`` and return the names of its files and folders.

    Args:
        served: From ``beside``.
        base: The base.
        adapters: By the name they are served under.
        out: Folder to create.

    Raises:
        CheckpointError: ``out`` exists, or the server cannot be told so.
        MachineError: The disk is full or cannot be written.
    """
    assert served.adapters is not None  # ``beside`` made it
    files = bundle_files(served, "vllm")
    files[NAMES] = to_json(_names(served, served.adapters, base, adapters))
    with staged(out) as folder:
        for name, adapter in adapters.items():
            place = folder / ADAPTERS / name
            write_adapter(adapter, place, "vllm", rank=served.adapters.rank)
        write_files(files, folder)
    return [f"{ADAPTERS}/", *sorted(files)]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        base: Name or folder of the base, as it was given; ``revision`` is its own on the Hub.
        revision: See ``base``.
        base_name: The name that the base is served under.
        adapters: Folders of the adapters, by the names they are served under.
    """

    base: str
    revision: str | None
    base_name: str
    adapters: Mapping[str, Path]


def read_bundle(folder: Path) -> Bundle:
    """Return what ``write_adapters`` wrote.

    Raises:
        CheckpointError: No such folder, or its names are damaged.
    """
    file = folder / NAMES
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: holds no {NAMES}; expected what `gptoss-tune adapter RUN... --for vllm "
            "--bundle OUT` wrote"
        )
    told = read_object(file)
    base, adapters = told.get("base"), told.get("adapters")
    right = (
        isinstance(base, dict)
        and isinstance(base.get("path"), str)
        and isinstance(base.get("name"), str)
        and isinstance(base.get("revision"), str | None)
        and isinstance(adapters, dict)
        and adapters
        and all(isinstance(a, dict) and isinstance(a.get("folder"), str) for a in adapters.values())
    )
    if not right or not isinstance(base, dict) or not isinstance(adapters, dict):
        raise CheckpointError(
            f"{file}: expected base (name, path, revision) and adapters, each with its folder; "
            "write the bundle again"
        )
    folders = {name: inside(folder, a["folder"], f"{file}: names") for name, a in adapters.items()}
    return Bundle(base["path"], base.get("revision"), base["name"], folders)


def _names(
    served: Served, told: Adapters, base: Checkpoint, adapters: Mapping[str, Adapter]
) -> dict[str, Any]:
    """Return what the bundle holds and under which names."""
    listed = {
        name: {
            "folder": f"{ADAPTERS}/{name}",
            "source": str(adapter.path),
            "rank": told.ranks[name],
            "weights_sha256": adapter.weights_digest,
        }
        for name, adapter in adapters.items()
    }
    return {
        "base": {
            "name": served.name,
            "path": local(served),
            "revision": told.revision,
            "fingerprint": base.fingerprint(),
        },
        "adapters": listed,
        "rank": told.rank,
        "slots": told.slots,
        "bytes_on_each_gpu": told.bytes_on_gpu,
        "read_from": f"vLLM {VLLM}",
    }
