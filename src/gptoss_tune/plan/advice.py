"""Advice for a plan that does not fit: changes on top of each other, cheapest first, until it does.

Every change is ``key=value`` that can be typed behind the recipe, and is planned together with
those before it, so each comes with the peak that it leads to and the last one fits. First come
changes after which the same numbers are trained, only slower; then those that round or shrink
something; then those that change what the model sees. A change that turns out not to be needed,
because a later one frees more, is left out again.

Where all of them are not enough, ``elsewhere`` says what is: a larger card, several that share the
model, or the smaller release; and where rows would be cut, how many cards are enough to share each
row (``ways_out``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptoss_tune.plan.architecture import RELEASED, smaller_release
from gptoss_tune.plan.gpus import Gpu, smallest_with
from gptoss_tune.plan.memory import fitted, memory
from gptoss_tune.plan.rollout.phase import phase_of
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.recipe.recipe import fsdp2_obstacle

_MOST_GPUS = 16


@dataclass(frozen=True)
class Advice:
    """One change, on top of those before it.

    Attributes:
        overrides: To be typed behind the recipe; a key that an earlier change has replaces it.
        cost: What it costs, in words.
        peak: Bytes of one GPU after it and all changes before it.
        fits: Whether that is enough.
    """

    overrides: tuple[str, ...]
    cost: str
    peak: int
    fits: bool


@dataclass(frozen=True)
class Elsewhere:
    """Something else to train on or with, which is enough.

    Attributes:
        what: In words.
        gpu: Name of the card.
        gpus: How many.
        overrides: To be typed behind the recipe.
        peak: Bytes of one GPU then.
    """

    what: str
    gpu: str
    gpus: int
    overrides: tuple[str, ...]
    peak: int


@dataclass(frozen=True)
class _Change:
    """A candidate: settings by dotted key, and what they cost."""

    settings: dict[str, Any]
    cost: str


def advice(setup: TrainingSetup, memory_bytes: int) -> list[Advice]:
    """Return the changes that make a training fit, each on top of those before it.

    Args:
        setup: What is trained, and how.
        memory_bytes: Of one GPU.

    Returns:
        The changes, cheapest first; the last one fits, unless all that there are do not: then each
        that lowers the peak. Empty when the training fits as it is.
    """
    taken = _taken(setup, memory_bytes)
    if taken and _peak(setup, memory_bytes, taken) <= memory_bytes:
        for change in reversed(taken[:-1]):  # without the last one it did not fit
            fewer = [other for other in taken if other is not change]
            if _allowed(setup, fewer) and _peak(setup, memory_bytes, fewer) <= memory_bytes:
                taken = fewer
    found = []
    for count, change in enumerate(taken, 1):
        peak = _peak(setup, memory_bytes, taken[:count])
        found.append(Advice(_words(change.settings), change.cost, peak, peak <= memory_bytes))
    return found


def together(changes: Iterable[Advice]) -> tuple[str, ...]:
    """Return the overrides of all changes, of each key the last."""
    by_key = {word.partition("=")[0]: word for change in changes for word in change.overrides}
    return tuple(by_key.values())


def elsewhere(setup: TrainingSetup, card: Gpu) -> list[Elsewhere]:
    """Return what is enough for a training that no advice makes fit on ``card``, each tried."""
    found = []
    least = advice(setup, 0)
    peak = least[-1].peak if least else _peak(setup, 0)
    larger = smallest_with(peak)
    if larger is not None:
        changes = advice(setup, larger.memory_bytes)
        what = "a larger card" + (", with these changes" if changes else "")
        peak = changes[-1].peak if changes else _peak(setup, larger.memory_bytes)
        words = together(changes)
        found.append(Elsewhere(what, larger.name, setup.num_processes, words, peak))
    for count in (2, 4, 8, 16):
        enough = count > setup.shards and count >= setup.num_processes
        enough = enough and setup.method.name != "grpo"  # which plays with whole models
        if enough and setup.architecture.experts % count == 0:
            sharing = _shareable(setup)
            spread = replace(setup, num_processes=count, strategy="fsdp2").with_settings(sharing)
            what = f"{count} of these cards, which share the model"
            given = _changed_words(setup, sharing)
            given += (f"distributed.num_processes={count}", "distributed.strategy=fsdp2")
            if (way := _way(what, spread, card, given)) is not None:
                found.append(way)
                break
    name = smaller_release(setup.model.name_or_path)
    small = RELEASED[name]
    if setup.architecture.layers > small.layers and setup.lora.layers is None:
        model = setup.model.model_copy(update={"name_or_path": name, "revision": None})
        smaller = replace(setup, architecture=small, model=model)
        given = (f"model.name_or_path={name}",)
        if (way := _way("the smaller model", smaller, card, given)) is not None:
            found.append(way)
    return found


def ways_out(setup: TrainingSetup, card: Gpu, changes: list[Advice]) -> list[Elsewhere]:
    """Return what else is enough for a training that does not fit on ``card``.

    Args:
        setup: What is trained, and how.
        card: The GPU.
        changes: The advice; where it is enough and cuts no row, there is no need of another way.
    """
    enough = bool(changes) and changes[-1].fits
    if enough and not _cuts_rows(together(changes)):
        return []
    ways = [] if enough else elsewhere(setup, card)
    more = [way for way in ways if way.gpus > setup.num_processes]
    if any(not _cuts_rows(way.overrides) for way in more):
        return ways
    found = _more_gpus_a_row(setup, card)
    if found is None:
        return ways
    cards = [way for way in ways if way in more or way.gpu != card.name]
    return [*cards, found, *(way for way in ways if way not in cards)]


def _cuts_rows(overrides: Iterable[str]) -> bool:
    """Return whether overrides shorten the rows."""
    return any(word.startswith("data.max_length=") for word in overrides)


def _more_gpus_a_row(setup: TrainingSetup, card: Gpu) -> Elsewhere | None:
    """Return the fewest GPUs that fit when they share the model and each row, rows uncut.

    Args:
        setup: A training that does not fit on ``card``.
        card: The GPU.

    Returns:
        The way; ``None`` where up to 16 of them are not enough, or the recipe cannot share rows.
    """
    flex = setup.model.attention == "flex"
    if setup.method.name != "sft" or setup.train.auto_find_batch_size or flex:
        return None
    groups = setup.num_processes // setup.context_parallel
    each = 2 * setup.context_parallel
    while groups * each <= _MOST_GPUS:
        count = groups * each
        if setup.architecture.experts % count == 0:
            found = _sharing_rows(setup, card, count, each)
            if found is not None:
                return found
        each *= 2
    return None


def _sharing_rows(setup: TrainingSetup, card: Gpu, count: int, each: int) -> Elsewhere | None:
    spread = replace(setup, num_processes=count, strategy="fsdp2", context_parallel=each)
    sharing = _shareable(setup)
    given = (
        *_changed_words(setup, sharing),
        f"distributed.num_processes={count}",
        "distributed.strategy=fsdp2",
        f"distributed.context_parallel={each}",
    )
    what = f"{count} of these cards, which share the model, and {each} of them each row"
    found = _way(what, spread.with_settings(sharing), card, given)
    return None if found is None or _cuts_rows(found.overrides) else found


def _shareable(setup: TrainingSetup) -> dict[str, Any]:
    """Return the settings with which FSDP2 can share a training: no 8-bit moments, no NF4."""
    found: dict[str, Any] = {"train.optim": "adamw"}
    for name in ("linear_precision", "head_precision"):
        if getattr(setup.model, name) == "nf4":
            found[f"model.{name}"] = "bf16"
    return found


def _way(what: str, setup: TrainingSetup, card: Gpu, given: tuple[str, ...]) -> Elsewhere | None:
    """Return another training as a way out, with its own advice; ``None`` where it does not fit."""
    changes = advice(setup, card.memory_bytes)
    peak = changes[-1].peak if changes else _peak(setup, card.memory_bytes)
    if peak > card.memory_bytes:
        return None
    words = (*given, *together(changes))
    return Elsewhere(what, card.name, setup.num_processes, words, peak)


def _changed_words(setup: TrainingSetup, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return those of ``settings`` that ``setup`` has otherwise, as they are typed."""
    found = {}
    for key, value in settings.items():
        section, name = key.split(".")
        if getattr(getattr(setup, section), name) != value:
            found[key] = value
    return _words(found)


def _taken(setup: TrainingSetup, memory_bytes: int) -> list[_Change]:
    """Return every change that lowers the peak further, up to the one that is enough."""
    taken: list[_Change] = []
    peak = _peak(setup, memory_bytes)
    for change in _changes(setup):
        if peak <= memory_bytes:
            break
        if not _allowed(setup, [*taken, change]):
            continue
        lower = _peak(setup, memory_bytes, [*taken, change])
        if lower < peak:
            taken, peak = [*taken, change], lower
    return taken


def _with(setup: TrainingSetup, changes: Iterable[_Change]) -> TrainingSetup:
    settings: dict[str, Any] = {}
    for change in changes:
        settings |= change.settings
    return setup.with_settings(settings)


def _peak(setup: TrainingSetup, memory_bytes: int, changes: Iterable[_Change] = ()) -> int:
    """Return the peak after ``changes``, in the tiles that ``memory_bytes`` ask for."""
    return memory(fitted(_with(setup, changes), memory_bytes)).peak


def _allowed(setup: TrainingSetup, changes: Iterable[_Change]) -> bool:
    """Return whether the strategy can share what the changes make of the training."""
    changed = _with(setup, changes)
    return setup.strategy != "fsdp2" or fsdp2_obstacle(changed.model, changed.train) is None


def _changes(setup: TrainingSetup) -> Iterator[_Change]:
    """Yield candidates that differ from ``setup``, cheapest first."""
    model, lora, train = setup.model, setup.lora, setup.train
    if model.experts_precision == "bf16" and setup.architecture.packed:
        yield _Change({"model.experts_precision": "mxfp4"}, "the same values, decoded when used")
    batch, steps = train.per_device_train_batch_size, train.gradient_accumulation_steps
    if batch > 1:
        fewer = {"train.per_device_train_batch_size": 1}
        if setup.method.name != "grpo":  # whose steps take as many micro-batches as they need
            fewer["train.gradient_accumulation_steps"] = batch * steps
        yield _Change(fewer, "the same optimizer steps, in smaller pieces")
    if setup.method.name == "grpo":
        phase = phase_of(setup)
        assert phase is not None
        together = phase.most_at_a_time // 2
        while together:
            cost = "fewer episodes are sampled together, which takes longer"
            yield _Change({"method.rollout_batch": together}, cost)
            together //= 2
    modes = ("none", "selective", "full", "offload")
    costs = {
        "selective": "one product of each layer is computed again",
        "full": "each layer is computed again: about 40 % more work",
        "offload": "as full, and the layers' inputs wait in host memory",
    }
    for mode in modes[modes.index(train.activation_checkpointing) + 1 :]:
        yield _Change({"train.activation_checkpointing": mode}, costs[mode])
    if train.expert_tile != "auto":
        yield _Change({"train.expert_tile": "auto"}, "experts are decoded again for each tile")
    if model.embeddings == "gpu":
        yield _Change({"model.embeddings": "cpu"}, "the host looks tokens up: one wait a step")
    if train.optim == "adamw":
        yield _Change({"train.optim": "adamw_8bit"}, "moments are rounded to 8 bits")
    if train.optim != "paged_adamw_8bit":
        yield _Change({"train.optim": "paged_adamw_8bit"}, "8-bit moments live in host memory")
    if model.head == "gpu" and model.head_precision != "nf4":
        yield _Change(
            {"model.head": "cpu"}, "lm_head comes over the bus, twice per 512 trained tokens"
        )
    for name, what in (("head_precision", "lm_head"), ("linear_precision", "attention")):
        if getattr(model, name) == "bf16":
            yield _Change({f"model.{name}": "int8"}, f"{what} is rounded to 8 bits")
    if lora.target_parameters and not lora.merge_aware:
        for rank in (8, 4):
            if rank < (lora.expert_rank or lora.rank):
                yield _Change({"lora.expert_rank": rank}, "the experts learn with a lower rank")
    for name, what in (("linear_precision", "attention"), ("head_precision", "lm_head")):
        if getattr(model, name) != "nf4":
            yield _Change({f"model.{name}": "nf4"}, f"{what} is rounded to 4 bits")
    length = setup.data.max_length // 2
    while length >= 1024:
        yield _Change({"data.max_length": length}, "longer samples are cut or dropped")
        length //= 2


def _words(settings: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in settings.items())
