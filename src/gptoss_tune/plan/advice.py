"""Advice for a plan that does not fit: settings to change, ranked by what the change costs.

Every candidate is a list of ``key=value`` that can be typed behind the recipe, and is planned
itself, so a piece of advice always comes with the peak it leads to. First come changes after which
the same numbers are trained, only slower; then those that round or shrink something; then those
that change what the model sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptoss_tune.plan.memory import memory
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.recipe.recipe import fsdp2_obstacle


@dataclass(frozen=True)
class Advice:
    """One change.

    Attributes:
        overrides: To be typed behind the recipe.
        cost: What it costs, in words.
        peak: Bytes of one GPU after it.
        fits: Whether that is enough.
        together: It holds the changes above it as well.
    """

    overrides: tuple[str, ...]
    cost: str
    peak: int
    fits: bool
    together: bool = False


@dataclass(frozen=True)
class _Change:
    """A candidate: settings by dotted key, and what they cost."""

    settings: dict[str, Any]
    cost: str


def advice(setup: TrainingSetup, memory_bytes: int) -> list[Advice]:
    """Return what would help, cheapest first, and at last what is enough together.

    Args:
        setup: What is trained, and how.
        memory_bytes: Of one GPU.

    Returns:
        Single changes that lower the peak, in the order of their cost; when none of them is enough
        alone, one entry with the shortest row of them that is. Empty when the plan fits.
    """
    peak = memory(setup).peak
    if peak <= memory_bytes:
        return []
    found: list[Advice] = []
    combined, gathered = setup, []
    for change in _changes(setup):
        changed = setup.with_settings(change.settings)
        if setup.strategy == "fsdp2" and fsdp2_obstacle(changed.model, changed.train):
            continue
        single = memory(changed).peak
        if single >= peak:
            continue
        found.append(Advice(_words(change.settings), change.cost, single, single <= memory_bytes))
        candidate = combined.with_settings(change.settings)
        before = memory(combined).peak
        if before > memory_bytes and memory(candidate).peak < before:
            combined = candidate
            gathered.append(change.settings)
    left = memory(combined).peak
    if not any(entry.fits for entry in found) and left <= memory_bytes:
        settings: dict[str, Any] = {}
        for entry in gathered:
            settings |= entry
        found.append(Advice(_words(settings), "all of these together", left, True, together=True))
    return found


def _changes(setup: TrainingSetup) -> Iterator[_Change]:
    """Yield candidates that differ from ``setup``, cheapest first."""
    model, lora, train = setup.model, setup.lora, setup.train
    if model.experts_precision == "bf16" and setup.architecture.packed:
        yield _Change({"model.experts_precision": "mxfp4"}, "the same values, decoded when used")
    batch, steps = train.per_device_train_batch_size, train.gradient_accumulation_steps
    if batch > 1:
        fewer = {
            "train.per_device_train_batch_size": 1,
            "train.gradient_accumulation_steps": batch * steps,
        }
        yield _Change(fewer, "the same optimizer steps, in smaller pieces")
    modes = ("none", "selective", "full", "offload")
    costs = {
        "selective": "one product of each layer is computed again",
        "full": "each layer is computed again: about 40 % more work",
        "offload": "as full, and the layers' inputs wait in host memory",
    }
    for mode in modes[modes.index(train.activation_checkpointing) + 1 :]:
        yield _Change({"train.activation_checkpointing": mode}, costs[mode])
    if model.embeddings == "gpu":
        yield _Change({"model.embeddings": "cpu"}, "the host looks tokens up: one wait a step")
    if train.optim == "adamw":
        yield _Change({"train.optim": "adamw_8bit"}, "moments are rounded to 8 bits")
    if train.optim != "paged_adamw_8bit":
        yield _Change({"train.optim": "paged_adamw_8bit"}, "8-bit moments live in host memory")
    if lora.target_parameters and not lora.merge_aware:
        for rank in (8, 4):
            if rank < (lora.expert_rank or lora.rank):
                yield _Change({"lora.expert_rank": rank}, "the experts learn with a lower rank")
    if model.linear_precision == "bf16":
        yield _Change({"model.linear_precision": "nf4"}, "attention is rounded to 4 bits")
    length = setup.data.max_length // 2
    while length >= 1024:
        yield _Change({"data.max_length": length}, "longer samples are cut or dropped")
        length //= 2


def _words(settings: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in settings.items())
