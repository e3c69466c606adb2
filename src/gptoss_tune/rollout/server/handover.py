"""How the server gets the trainer's weights: an adapter swapped in place, or MXFP4 shipped.

A served adapter is ``W + s B A``; merge-aware training computes ``Q(W + s B A)``, rounded to MXFP4.
The two are not equal, so an adapter is handed over where training does not round, and the merged
file, in which the rounded weights are the trained ones, where it does.

What is handed over is named by its version and by its own hash, and never written under a name
twice: vLLM finds a prefix's cache by name and path of an adapter, and a cache of other weights
would answer without a word. The folder has to be at the same path for the server.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from gptoss_tune.errors import MachineError, say_once
from gptoss_tune.export.adapter_formats import write_adapter
from gptoss_tune.export.merge.merge import MergeOptions, merge
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.files.atomic import disk_errors, to_json, write_text
from gptoss_tune.rollout.server.answers import Weights
from gptoss_tune.rollout.server.completions import CompletionServer
from gptoss_tune.rollout.server.parts import changed_parts, parts_kept, parts_untold
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.weights import Checkpoint, open_checkpoint
from gptoss_tune.weights.adapter import Adapter, open_adapter

_INCOMPLETE = "-incomplete"
_SHIPPED = re.compile(rf"weights-v\d+-[0-9a-f]{{12}}({_INCOMPLETE})?")
_IDLE_TRIES, _IDLE_SECONDS = 20, 0.5


class Handover(Protocol):
    """Gives the server what was trained; the first rank calls it."""

    def hand_over(self, adapter: Path, version: int) -> Weights:
        """Let the server sample with the weights of an adapter, and return how they are asked for.

        Args:
            adapter: Folder of the adapter as training saved it, with the run's record.
            version: The trainer's step.

        Raises:
            CheckpointError, MachineError: With what the server answered, or why there is nothing
                to give it.
        """
        ...


def _name(kind: Literal["policy", "weights"], adapter: Adapter, version: int) -> str:
    """Return the name of what is handed over of an adapter: of another's, another."""
    return f"{kind}-v{version}-{adapter.weights_digest.removeprefix('sha256:')[:12]}"


@dataclass
class SwappedAdapter:
    """The adapter, in the form that vLLM reads, beside the base that the server holds.

    Attributes:
        server: Who gets it.
        base: What it was trained on.
        folder: Where it is put.
    """

    server: CompletionServer
    base: Checkpoint
    folder: Path
    _before: str | None = field(default=None, init=False)

    def hand_over(self, adapter: Path, version: int) -> Weights:
        """Load the adapter under a name of its own and unload the one before; see ``Handover``."""
        opened = open_adapter(adapter, self.base)
        name = _name("policy", opened, version)
        out = self.folder / name
        if name == self._before:
            return Weights(version, name)
        if not out.exists():
            write_adapter(opened, out, "vllm")
        wanted = {
            "lora_name": name,
            "lora_path": str(out.absolute()),
            "load_inplace": True,
            "is_3d_lora_weight": True,
        }
        self.server.control("load_lora_adapter", wanted, v1=True)
        served = self.server.served()
        if name not in served:
            raise MachineError(
                f"{self.server.url}: loaded the adapter {name}, and serves {', '.join(served)}; "
                "start it with --api-server-count 1: each of its processes has a list of its own"
            )
        if self._before is not None:
            self.server.control("unload_lora_adapter", {"lora_name": self._before}, v1=True)
            shutil.rmtree(self.folder / self._before, ignore_errors=True)
        self._before = name
        return Weights(version, name)


@dataclass
class ShippedWeights:
    """The merged checkpoint in MXFP4, which the server loads in the place of what it holds.

    The server is paused meanwhile, its cache emptied, and a label is set that it tells of every
    token; half-loaded weights have a label that no answer is taken with.

    Attributes:
        server: Who gets it.
        base: What was trained on.
        folder: Where checkpoints are put: room for two.
        device: Where the merge is computed.
        progress: Called with bytes done and bytes in all.
    """

    server: CompletionServer
    base: Checkpoint
    folder: Path
    device: str = "cpu"
    progress: Callable[[int, int], None] = lambda done, total: None
    _before: str | None = field(default=None, init=False)

    def hand_over(self, adapter: Path, version: int) -> Weights:
        """Merge, and let the server load the result; see ``Handover``."""
        opened = open_adapter(adapter, self.base)
        name = _name("weights", opened, version)
        out = self.folder / name
        model = self.server.served()[0]
        if name == self._before:
            return Weights(version, model, name)
        if not out.exists():
            self._merge(opened, out)
        self._reload(out, name)
        if self._before is not None:
            shutil.rmtree(self.folder / self._before, ignore_errors=True)
        self._before = name
        return Weights(version, model, name)

    def _merge(self, adapter: Adapter, out: Path) -> None:
        options = MergeOptions("mxfp4", device=self.device, accept_loss=True)
        report = merge(self.base, [WeightedAdapter(adapter)], out, options, progress=self.progress)
        if not report["merge_aware"]:
            shutil.rmtree(out)
            raise MachineError(
                f"{adapter.path}: its record does not say that the rounded weights were trained "
                "(lora.merge_aware), and MXFP4 would round them now; hand the adapter over instead"
            )

    def _held(self, label: Any) -> Checkpoint | None:
        """Return the weights that the server has by its ``label``; None where they are not here.

        A run that goes on finds those of its last hand-over, unless somebody removed them, or it
        was killed in the middle of a reload.
        """
        if self._before is not None:
            return open_checkpoint(self.folder / self._before)
        if not (isinstance(label, str) and _SHIPPED.fullmatch(label)):
            return self.base
        before = self.folder / label
        return open_checkpoint(before) if before.is_dir() else None

    def _reload(self, out: Path, label: str) -> None:
        """Put the weights of ``out`` into the paused server and label them.

        Args:
            out: What is loaded.
            label: Its name.

        Raises:
            MachineError: It did not load them; it stays paused, so that nobody gets answers of
                weights that are half of each.
        """
        ask = self.server.control
        before, had = self._checksums(), _label(ask("weight_info"))
        held = self._held(had)
        changes = set[str]() if held is None else changed_parts(held, open_checkpoint(out))
        if held is None:
            say_once(
                f"{self.server.url}: holds {had}, which is not in {self.folder}: that {label} was "
                "loaded in its place is seen by the mismatch KL alone"
            )
        ask("pause", {}, query="?mode=wait")
        ask("update_weight_version", {"new_version": f"{label}{_INCOMPLETE}"})
        told = {"method": "reload_weights", "kwargs": {"weights_path": str(out.absolute())}}
        ask("collective_rpc", told)
        self._empty_cache()
        if untold := parts_untold(before, changes):
            say_once(
                f"{self.server.url}: tells no checksums of {len(untold)} parts of the model, as of "
                f"{min(untold)}: that they were loaded is seen by the mismatch KL alone"
            )
        kept = parts_kept(before, self._checksums(), changes)
        if kept:
            raise MachineError(
                f"{self.server.url}: loaded {out}, and holds the same weights as before in "
                f"{kept[0]} ({len(kept)} such parts); it stays paused: see what it wrote, and "
                "whether it reads that folder at that path"
            )
        ask("update_weight_version", {"new_version": label})
        ask("resume", {})
        if (now := _label(ask("weight_info"))) != label:
            raise MachineError(
                f"{self.server.url}: was given the weights {label} and says it has {now}; does "
                "another run use the same server?"
            )

    def _checksums(self) -> Mapping[str, str]:
        """Return the hashes of the tensors that the server holds.

        Raises:
            MachineError: It does not tell them.
        """
        told = self.server.control("weight_checker", {"action": "checksum"})
        found = told.get("checksums") if isinstance(told, dict) else None
        if not isinstance(found, dict) or not found:
            raise MachineError(
                f"{self.server.url}: tells no checksums of its weights (weight_checker); whether "
                "it loaded new ones could not be seen: vLLM 0.33 or newer does"
            )
        return found

    def _empty_cache(self) -> None:
        """Let the server forget prefixes that the old weights computed.

        Raises:
            MachineError: It does not, as long as requests of somebody else hold them.
        """
        for _ in range(_IDLE_TRIES):
            told = self.server.control("reset_prefix_cache", {})
            if isinstance(told, dict) and told.get("success") is True:
                return
            time.sleep(_IDLE_SECONDS)
        raise MachineError(
            f"{self.server.url}: did not empty its cache of prefixes, which the old weights "
            "computed; it stays paused"
        )


def _label(told: Any) -> Any:
    return told.get("weight_version") if isinstance(told, dict) else None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Put what an export asks of a run beside an adapter: its base, and whether it was rounded."""
    with disk_errors(folder):
        write_text(RunFolder(folder).record, to_json(dict(record)))
