"""From the best settings to the smallest, until the plan says that the run fits the card.

Each rung of the ladder gives up a little more: first exact things that cost time, then digits of
the optimizer's moments, then rank, at last the longest rows. What is planned is what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from gptoss_tune.errors import MachineError, RecipeError
from gptoss_tune.plan.architecture import RELEASED, architecture_of, smaller_release
from gptoss_tune.plan.gpus import Gpu
from gptoss_tune.plan.plan import Plan, plan
from gptoss_tune.recipe.dump import Noted
from gptoss_tune.recipe.mistakes import shown
from gptoss_tune.recipe.recipe import Recipe, fsdp2_obstacle, uneven_experts
from gptoss_tune.workflows.first_recipe.sizes import (
    SHORTEST,
    USUAL,
    needed_length,
    sizes,
    usual_length,
    worth_packing,
)

if TYPE_CHECKING:
    from gptoss_tune.workflows.first_recipe.look import DataLook

_GIB: Final = 2**30
_RUNGS: Final[tuple[dict[str, Noted], ...]] = (
    {},
    {"train.optim": Noted("adamw_8bit", "moments in 8 bits: a quarter of their memory")},
    {
        "train.activation_checkpointing": Noted(
            "offload", "layer inputs wait in host memory; the same numbers"
        )
    },
    {
        "train.optim": Noted(
            "paged_adamw_8bit", "moments in 8 bits, in host memory when it is tight"
        )
    },
    {"model.embeddings": Noted("cpu", "1.1 GiB less on the card, one wait a step")},
    {"model.head": Noted("cpu", "1.1 GiB less on the card; lm_head comes over the bus by tiles")},
    {"model.linear_precision": Noted("int8", "attention in 8 bits, rounded by 0.6 %")},
    {"lora.expert_rank": Noted(8, "half the rank on the experts: the rest would not fit")},
    {"lora.expert_rank": Noted(4, "a quarter of the rank on the experts: more would not fit")},
    {"model.linear_precision": Noted("nf4", "attention in 4 bits, rounded by 9 %")},
)
_EXACT: Final = 7
"""Rungs, the first of them none, below which the adapters stay as they are."""
_COMFORTABLE: Final = 0.95
"""Share of a card's memory that a plan, whose peaks are not measured on it, is trusted with."""
_FULL: Final = 0.9
"""Share of a card's memory to which the micro-batch is raised."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """Settings that fit, and the plan that says so.

    Attributes:
        settings: By dotted name, those of the ladder and of the sizes.
        plan: Of the whole recipe.
        dropped_over: ``data.max_length`` where longer samples are left out; ``None``: none are.
    """

    settings: dict[str, Noted]
    plan: Plan
    dropped_over: int | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What to fit: some cards of one kind."""

    card: Gpu
    count: int = 1


def fit(known: dict[str, Noted], look: DataLook, machine: Machine, share: float) -> Fitted:
    """Return the best settings with which a recipe fits.

    Args:
        known: What the recipe says already: model, data, method.
        look: The data.
        machine: Where it is to run.
        share: Of the rows, held out.

    Raises:
        MachineError: Nothing fits; the message says what would.
    """
    smallest: Plan | None = None
    tight: tuple[dict[str, Noted], Plan] | None = None
    for settings in _candidates(known, look, machine.count, share):
        made = _planned(known | settings, machine, look, share)
        if made.memory.peak <= _COMFORTABLE * machine.card.memory_bytes:
            return _fitted(*_larger_batch(known, settings, made, look, machine, share), look)
        if made.fits and tight is None:
            tight = settings, made
        if smallest is None or made.memory.peak < smallest.memory.peak:
            smallest = made
    if tight is not None:
        return _fitted(*tight, look)
    assert smallest is not None  # there is always a first candidate
    raise MachineError(_nothing_fits(known, look, machine, share, smallest))


def _fitted(settings: dict[str, Noted], made: Plan, look: DataLook) -> Fitted:
    length = made.recipe.data.max_length
    return Fitted(settings, made, length if length < needed_length(look) else None)


def _candidates(
    known: dict[str, Noted], look: DataLook, count: int, share: float
) -> Iterator[dict[str, Noted]]:
    """Yield settings that can be planned, best first."""
    for shared in _ways_to_share(known, count):
        for length, rungs in _attempts(look, share):
            settings = _settings(look, length, share, count, known | rungs | shared)
            recipe = recipe_of(known | settings)
            spread = recipe.distributed.strategy == "fsdp2"
            if not (spread and fsdp2_obstacle(recipe.model, recipe.train)):
                yield settings


def recipe_of(settings: dict[str, Noted]) -> Recipe:
    """Return the recipe of settings by dotted name.

    Raises:
        RecipeError: A name or a path that was given cannot stand in a recipe.
    """
    values: dict[str, Any] = {}
    for name, noted in settings.items():
        section, key = name.split(".")
        values.setdefault(section, {})[key] = noted.value
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RecipeError(f"{where}: got {shown(first['input'])}; {first['msg']}") from None


def _attempts(look: DataLook, share: float) -> Iterator[tuple[int, dict[str, Noted]]]:
    """Yield lengths with what is given up for them, best first."""
    usual, needed = usual_length(look, share), needed_length(look)
    ladder: list[dict[str, Noted]] = []
    for rung in _RUNGS:
        ladder.append((ladder[-1] if ladder else {}) | rung)
    lengths = [usual >> n for n in range(8) if usual >> n >= needed]
    for length in lengths:
        yield from ((length, rung) for rung in ladder[:_EXACT])
    yield from ((lengths[-1], rung) for rung in ladder[_EXACT:])
    for length in (needed >> n for n in range(1, 8)):
        if length >= SHORTEST:
            yield from ((length, rung) for rung in ladder)


def _ways_to_share(known: dict[str, Noted], count: int) -> Iterator[dict[str, Noted]]:
    """Yield how several GPUs share the model: each holds it, or a part where that does not fit."""
    if count == 1:
        yield {}
        return
    processes = Noted(count, "a process for each GPU")
    several = {"distributed.num_processes": processes}
    yield several | {"distributed.strategy": Noted("ddp", "each GPU holds the model")}
    base = known["model.name_or_path"].value
    if uneven_experts(architecture_of(base).experts, count) is None:
        spread = Noted("fsdp2", "each GPU holds a share: the whole does not fit one")
        yield several | {"distributed.strategy": spread}


def _settings(
    look: DataLook, length: int, share: float, count: int, given: dict[str, Noted]
) -> dict[str, Noted]:
    """Return the settings that follow from a length, with those of the ladder."""
    preferences = "method.name" in given
    chosen = sizes(look, length, share=share, preferences=preferences, processes=count)
    found = dict(given)
    if length != USUAL:
        samples = "pairs, both answers together," if look.rows == "pair" else "samples"
        samples = "texts" if look.is_text else samples
        why = f"the longest of the {samples} that were read has {look.longest:,} tokens"
        if length < needed_length(look):
            why += "; longer ones than this are dropped"
        elif look.is_text:
            why += "; longer ones than this are cut in pieces"
        elif length < USUAL and look.longest <= length // 2:
            why = f"{look.tokens:,} tokens in all fill few rows of 4,096; {why}"
        found["data.max_length"] = Noted(length, why)
    if worth_packing(look, length):
        why = f"{look.mean_tokens:,.0f} tokens on average: several share a row"
        why = "rows are filled with the pieces of texts" if look.is_text else why
        found["data.packing"] = Noted(True, why)
    found["train.num_train_epochs"] = Noted(chosen.epochs, _rows(look.count))
    accumulated = max(1, chosen.step_rows // count)
    if accumulated > 1:
        why = f"{accumulated * count} rows a step, about {chosen.steps:,} steps in all"
        found["train.gradient_accumulation_steps"] = Noted(accumulated, why)
    if chosen.steps >= 10:
        found["train.warmup_ratio"] = Noted(0.1 if preferences else 0.03)
    if "data.eval" in given or "data.eval_fraction" in given:
        found["train.eval_steps"] = Noted(chosen.every)
    found["train.save_steps"] = Noted(chosen.every, "a stopped run goes on from here")
    return found


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count != 1 else ''}"


def _planned(settings: dict[str, Noted], machine: Machine, look: DataLook, share: float) -> Plan:
    recipe = recipe_of(settings)
    preferences = recipe.method.name != "sft"
    chosen = sizes(look, recipe.data.max_length, share=share, preferences=preferences)
    return plan(recipe, machine.card, epoch_tokens=max(1, chosen.epoch_tokens))


def _larger_batch(
    known: dict[str, Noted],
    settings: dict[str, Noted],
    made: Plan,
    look: DataLook,
    machine: Machine,
    share: float,
) -> tuple[dict[str, Noted], Plan]:
    """Return the settings with as many rows at a time as leave a tenth of the memory free."""
    key, rows_key = "train.gradient_accumulation_steps", "train.per_device_train_batch_size"
    whole = settings[key].value if key in settings else 1
    for rows in (8, 4, 2):
        if rows > whole:
            continue
        larger = dict(settings)
        larger[rows_key] = Noted(rows, "rows at a time: the card has room for them")
        larger.pop(key, None)
        if whole > rows:
            larger[key] = Noted(whole // rows, settings[key].note)
        candidate = _planned(known | larger, machine, look, share)
        if candidate.memory.peak <= _FULL * machine.card.memory_bytes:
            return larger, candidate
    return settings, made


def _nothing_fits(
    known: dict[str, Noted], look: DataLook, machine: Machine, share: float, smallest: Plan
) -> str:
    base = known["model.name_or_path"].value
    card, needed = machine.card, smallest.memory.peak / _GIB
    cards = card.name if machine.count == 1 else f"{machine.count} x {card.name}"
    ways = [f"--gpu {smallest.larger.name}"] if smallest.larger is not None else []
    for count in (2, 4, 8):
        if count > machine.count and _fits(known, look, Machine(card, count), share):
            ways.append(f"--gpus {count}")
            break
    other = smaller_release(base)
    if base != other and base in RELEASED:
        less = known | {"model.name_or_path": Noted(other)}
        if _fits(less, look, machine, share):
            ways.append(f"--model {other.removeprefix('openai/gpt-oss-')}")
    advice = f"what fits: {' or '.join(ways)}" if ways else "no card that is known here is enough"
    return (
        f"{base} does not fit {cards}: with the smallest settings a GPU needs {needed:.1f} GiB of "
        f"its {card.memory_gib:.1f}; {advice}"
    )


def _fits(known: dict[str, Noted], look: DataLook, machine: Machine, share: float) -> bool:
    return any(
        _planned(known | settings, machine, look, share).fits
        for settings in _candidates(known, look, machine.count, share)
    )
