"""A bundle for vLLM: one base and the adapters beside it, each under its own name.

Every adapter is written in the same form: scale inside B, one rank, factors of all experts. vLLM
asks for less (an adapter may have a smaller rank than ``--max-lora-rank``, and other layers than
its neighbour: what it lacks is left at zero), but reads this alike in every release, patterns or
not.

One folder holds the adapters, the commands that serve them and what a client asks for; it becomes
visible when all of it is there. What vLLM does with it was read from the source of its release
``lora_memory.VLLM``; nothing here was run on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.adapter_formats import (
    largest_rank,
    refuse_unreadable,
    vllm_rank,
    write_adapter,
)
from gptoss_tune.export.serve.adapters_readme import readme
from gptoss_tune.export.serve.lora_memory import VLLM, divides_evenly, slot_bytes
from gptoss_tune.export.serve.served import KEYS, MODEL_MOUNT, PORT, Served, local
from gptoss_tune.export.serve.texts import compose_value, required, script, yaml_text
from gptoss_tune.export.serve.vllm import vllm_arguments
from gptoss_tune.files.atomic import staged, to_json
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.run.record import trained_merge_aware
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter import Adapter, open_adapter

FOLDER = "adapters"
NAMES = "names.json"
_COSTLY = 2  # times the memory, from which on padding is worth a word


@dataclass(frozen=True)
class Beside:
    """Adapters beside one base, as a server holds them.

    Attributes:
        adapters: By the name they are served under.
        slots: Adapters that the GPU holds at a time (``--max-loras``).
        served: The base: its name, where it lies, GPUs, context, address.
        packed: Whether the base's experts are MXFP4.
        revision: The base's own on the Hub, or None.
    """

    adapters: Mapping[str, Adapter]
    slots: int
    served: Served
    packed: bool
    revision: str | None = None

    def __post_init__(self) -> None:
        """Refuse a number of slots that means nothing."""
        if not 1 <= self.slots <= len(self.adapters):
            raise CheckpointError(
                f"--max-loras is {self.slots}; expected 1 to {len(self.adapters)}, the number of "
                "adapters"
            )

    @property
    def rank(self) -> int:
        """The rank that all are padded to."""
        return vllm_rank(map(largest_rank, self.adapters.values()))

    @property
    def by_expert(self) -> bool:
        """Whether whole experts are divided over the GPUs, as rows would be cut differently."""
        trained = any(t.experts for a in self.adapters.values() for t in a.targets.values())
        config = self.served.config
        return trained and not divides_evenly(config, self.served.gpus, packed=self.packed)

    def slot_bytes(self, rank: int | None = None) -> int:
        """Return the bytes on each GPU of one slot, of another rank than its own where given."""
        return slot_bytes(
            self.served.config,
            rank or self.rank,
            self.served.gpus,
            packed=self.packed,
            by_expert=self.by_expert,
        )

    def notes(self) -> list[str]:
        """Return what a user has to know, a sentence each."""
        served, total = self.served, self.slots * self.slot_bytes()
        found = [
            f"{self.slots} slots of rank {self.rank} take {total / 1e9:.2f} GB on each of "
            f"{served.gpus} GPUs, beside the base"
        ]
        ranks = _ranks(self)
        largest = [name for name, rank in ranks.items() if vllm_rank([rank]) == self.rank]
        rest = [rank for name, rank in ranks.items() if name not in largest]
        if rest and self.rank >= _COSTLY * vllm_rank(rest):
            less = vllm_rank(rest)
            found.append(
                f"because of {_listed(largest)} (rank {max(ranks.values())}) all slots are "
                f"{self.rank / less:g} times as large; without, {self.slots} slots of rank {less} "
                f"take {self.slots * self.slot_bytes(less) / 1e9:.2f} GB: serve it apart, or "
                "train it at a smaller lora.rank"
            )
        aware = [name for name, each in self.adapters.items() if trained_merge_aware(each.path)]
        if aware:
            found.append(
                f"trained merge-aware, on weights rounded with the adapter: {_listed(aware)}; "
                "beside the base nothing is rounded again, merge it to serve what was trained"
            )
        if self.by_expert:
            found.append(
                f"--enable-expert-parallel is set: over {served.gpus} GPUs vLLM {VLLM} cuts MXFP4 "
                "experts at other rows than an adapter's factors, and divides whole experts alike"
            )
        if served.open_to_others:
            found.append(f"others can reach {served.host}; clients need the key in {KEYS['vllm']}")
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
        f"{_listed(names)}: are the same adapter, byte for byte; name it once"
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


def write_adapters(beside: Beside, base: Checkpoint, out: Path) -> list[str]:
    """Write the bundle to the new folder ``out`` and return the names of its files and folders.

    Raises:
        CheckpointError: ``out`` exists, or an adapter cannot be written for vLLM.
        MachineError: The disk is full or cannot be written.
    """
    with staged(out) as folder:
        for name, adapter in beside.adapters.items():
            write_adapter(adapter, folder / FOLDER / name, "vllm", rank=beside.rank)
        files = {
            "serve.sh": _script(beside),
            "compose.yaml": _compose(beside),
            NAMES: to_json(_names(beside, base)),
            "README.md": readme(
                beside.served, _ranks(beside), beside.rank, beside.slot_bytes(), beside.notes()
            ),
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        (folder / "serve.sh").chmod(0o755)
    return [f"{FOLDER}/", *sorted(files)]


def adapter_arguments(beside: Beside, folder: str) -> list[str]:
    """Return the arguments of ``vllm serve`` that load the adapters from ``folder``.

    ``is_3d_lora_weight`` is left out: vLLM reads the layout of a gpt-oss adapter from the model's
    class, and looks at that field with ``--enable-mixed-moe-lora-format`` alone.
    """
    modules = [
        json.dumps(
            {"name": name, "path": f"{folder}/{name}", "base_model_name": beside.served.name}
        )
        for name in beside.adapters
    ]
    return [
        *(["--revision", beside.revision] if beside.revision else []),
        *(["--enable-expert-parallel"] if beside.by_expert else []),
        *("--enable-lora", "--max-lora-rank", str(beside.rank)),
        *("--max-loras", str(beside.slots), "--max-cpu-loras", str(len(modules))),
        *("--lora-modules", *modules),
    ]


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


def _names(beside: Beside, base: Checkpoint) -> dict[str, Any]:
    """Return what the bundle holds and under which names."""
    adapters = {
        name: {
            "folder": f"{FOLDER}/{name}",
            "source": str(adapter.path),
            "rank": largest_rank(adapter),
            "weights_sha256": adapter.weights_digest,
        }
        for name, adapter in beside.adapters.items()
    }
    return {
        "base": {
            "name": beside.served.name,
            "path": local(beside.served),
            "revision": beside.revision,
            "fingerprint": base.fingerprint(),
        },
        "adapters": adapters,
        "rank": beside.rank,
        "slots": beside.slots,
        "bytes_on_each_gpu": beside.slots * beside.slot_bytes(),
        "read_from": f"vLLM {VLLM}",
    }


def _script(beside: Beside) -> str:
    """Return ``serve.sh``, which finds the adapters beside itself."""
    served = beside.served
    command = ["vllm", "serve", *vllm_arguments(served, local(served))]
    command += ["--host", served.host, "--port", str(PORT), *adapter_arguments(beside, FOLDER)]
    text = script(command, needed=KEYS["vllm"] if served.open_to_others else None)
    return text.replace("set -e\n", 'set -e\ncd "$(dirname "$0")"\n', 1)


def _compose(beside: Beside) -> str:
    served = beside.served
    here = Path(served.path).is_dir()
    model = f"{MODEL_MOUNT}/{served.name}" if here else served.path
    command = vllm_arguments(served, model) + adapter_arguments(beside, f"/{FOLDER}")
    value = compose_value(served, "vllm/vllm-openai:latest", command)
    service = value["services"]["model"]
    cache = "${HF_HOME:-~/.cache/huggingface}:/root/.cache/huggingface"
    service["volumes"] = [
        service["volumes"][0] if here else cache,
        f"./{FOLDER}:/{FOLDER}:ro",
    ]
    if served.open_to_others:
        service["environment"] = {KEYS["vllm"]: required(KEYS["vllm"])}
    return yaml_text(value)


def _ranks(beside: Beside) -> dict[str, int]:
    return {name: largest_rank(each) for name, each in beside.adapters.items()}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
