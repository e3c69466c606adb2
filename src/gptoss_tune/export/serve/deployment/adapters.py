"""Adapters beside a base: their names, the rank and the slots that a server gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from gptoss_tune.errors import CheckpointError


@dataclass(frozen=True)
class Adapters:
    """Adapters beside a base, in vLLM's form, each in a folder of its name.

    Attributes:
        ranks: What each was trained at, by the name that clients ask for.
        rank: What all are padded to.
        slots: How many a GPU holds at a time.
        slot_bytes: Of one slot, on each GPU.
        by_expert: Whether GPUs share whole experts, because the base's and an adapter's rows would
            be cut at other places.
        revision: The base's own on the Hub, or None.
        whole_bytes: Of one adapter in the machine's memory, where no GPU's share is cut off yet.
    """

    ranks: Mapping[str, int]
    rank: int
    slots: int
    slot_bytes: int
    by_expert: bool = False
    revision: str | None = None
    whole_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse a number of slots that means nothing."""
        if not 1 <= self.slots <= len(self.ranks):
            raise CheckpointError(
                f"--max-loras is {self.slots}; expected 1 to {len(self.ranks)}, the number of "
                "adapters"
            )

    @property
    def bytes_on_gpu(self) -> int:
        """Of all slots, on each GPU."""
        return self.slots * self.slot_bytes

    @property
    def bytes_on_host(self) -> int:
        """Of all adapters in the memory of each GPU's process: ``--max-cpu-loras`` is all."""
        return len(self.ranks) * self.whole_bytes

    def arguments(self, base_name: str, folder: str) -> list[str]:
        """Return the arguments of ``vllm serve`` that load the adapters in ``folder``.

        ``is_3d_lora_weight`` is left out: vLLM 0.33.0 reads the layout of a gpt-oss adapter from
        the model's class, and that field with ``--enable-mixed-moe-lora-format`` alone.
        """
        modules = [
            json.dumps({"name": name, "path": f"{folder}/{name}", "base_model_name": base_name})
            for name in self.ranks
        ]
        return [
            *(["--revision", self.revision] if self.revision else []),
            *(["--enable-expert-parallel"] if self.by_expert else []),
            *("--enable-lora", "--max-lora-rank", str(self.rank)),
            *("--max-loras", str(self.slots), "--max-cpu-loras", str(len(modules))),
            *("--lora-modules", *modules),
        ]
