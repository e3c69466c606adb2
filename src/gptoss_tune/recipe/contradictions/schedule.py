"""Rules of the learning rate's schedule: its arguments, its warm-up, and the steps they need.

transformers finds the same mistakes when the trainer makes the schedule, minutes into a run, or
not at all: a decay that does not fit into the run is then never reached.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gptoss_tune.recipe.contradictions.contradiction import Contradiction
from gptoss_tune.recipe.schema.schedule import ARGUMENTS, schedule_arguments

if TYPE_CHECKING:
    from gptoss_tune.recipe.schema import TrainSection

_KWARGS = "train.lr_scheduler_kwargs"
_TYPE = "train.lr_scheduler_type"
_POLYNOMIAL_END = 1e-7


def schedule_rules(train: TrainSection) -> Iterator[Contradiction]:
    """Yield what contradicts itself in the schedule's arguments, steps apart."""
    schedule, given = train.lr_scheduler_type, schedule_arguments(train.lr_scheduler_kwargs)
    taken = ARGUMENTS[schedule]
    for name in [name for name in given if name not in taken]:
        yield _of_another(name, given.pop(name), schedule, taken)
    yield from _cosine_rules(train)
    yield from _range_rules(train)
    yield from _idle_rules(train)
    if schedule == "warmup_stable_decay" and "num_decay_steps" not in given:
        yield Contradiction(
            (_TYPE, _KWARGS, f"{_KWARGS}.num_decay_steps"),
            f"{schedule} without num_decay_steps",
            "how many steps the decay takes",
            "write for example lr_scheduler_kwargs: "
            f"{{num_decay_steps: {max(1, (train.max_steps or 500) // 5)}}} under 'train:'",
        )
    if train.max_steps is not None:
        yield from stage_rules(train, train.max_steps)


def _of_another(name: str, value: object, schedule: str, taken: tuple[str, ...]) -> Contradiction:
    """Return the contradiction of an argument that the schedule does not take."""
    having = [other for other, names in ARGUMENTS.items() if name in names]
    near = difflib.get_close_matches(name, taken, n=1, cutoff=0.6)
    did = f"did you mean {near[0]}? " if near else ""
    expected = f"one of its arguments: {', '.join(taken)}" if taken else "no arguments for it"
    return Contradiction(
        (f"{_KWARGS}.{name}", _TYPE),
        f"{value} with lr_scheduler_type {schedule}",
        expected,
        f"{did}remove it, or set {_TYPE} to {' or '.join(having)}",
        yields=(f"{_KWARGS}.{name}",),
    )


def _cosine_rules(train: TrainSection) -> Iterator[Contradiction]:
    """Yield what contradicts itself in a cosine: its lowest rate, its restarts."""
    schedule, given = train.lr_scheduler_type, train.lr_scheduler_kwargs
    lowest = (f"{_KWARGS}.min_lr", f"{_KWARGS}.min_lr_rate")
    if schedule in ("cosine_with_min_lr", "cosine_warmup_with_min_lr"):
        least = None if given is None else given.min_lr
        share = None if given is None else given.min_lr_rate
        if least is not None and share is not None:
            yield Contradiction(
                lowest,
                f"{least:g} beside min_lr_rate {share:g}",
                "one of the two",
                "remove one",
                yields=lowest,
            )
        elif least is None and share is None:
            yield Contradiction(
                (_TYPE, _KWARGS, *lowest),
                f"{schedule} without min_lr and min_lr_rate",
                "the rate it ends at",
                "write for example lr_scheduler_kwargs: {min_lr_rate: 0.1} under 'train:'",
            )
    if schedule == "cosine_with_restarts" and given is not None:
        cycles = given.num_cycles
        if cycles is not None and not float(cycles).is_integer():
            yield Contradiction(
                (f"{_KWARGS}.num_cycles", _TYPE),
                f"{cycles:g} with lr_scheduler_type {schedule}",
                "a whole number of cosines",
                f"write {max(1, round(cycles))}",
            )


def _range_rules(train: TrainSection) -> Iterator[Contradiction]:
    """Yield a lowest rate that is not below the highest."""
    given, highest = train.lr_scheduler_kwargs, train.learning_rate
    least = None if given is None else given.min_lr
    takes = ARGUMENTS[train.lr_scheduler_type]
    if least is not None and least > highest and "min_lr" in takes:
        yield Contradiction(
            (f"{_KWARGS}.min_lr", "train.learning_rate"),
            f"{least:g} with learning_rate {highest:g}",
            "no more than the highest rate",
            f"lower {_KWARGS}.min_lr; a share of the rate is min_lr_rate",
        )
    end = given.lr_end if given is not None and given.lr_end is not None else _POLYNOMIAL_END
    if train.lr_scheduler_type == "polynomial" and end >= highest:
        yield Contradiction(
            (f"{_KWARGS}.lr_end", "train.learning_rate"),
            f"{end:g} with learning_rate {highest:g}",
            "less than the highest rate",
            f"lower {_KWARGS}.lr_end, or use constant",
        )


def _idle_rules(train: TrainSection) -> Iterator[Contradiction]:
    """Yield arguments of a part that the schedule does not have: a warm-up, a cosine decay."""
    given = train.lr_scheduler_kwargs
    if given is None:
        return
    warms = bool(train.warmup_steps or train.warmup_ratio)
    for schedule, name in (
        ("cosine_warmup_with_min_lr", "warmup_lr_rate"),
        ("warmup_stable_decay", "warmup_type"),
    ):
        value = getattr(given, name)
        if train.lr_scheduler_type == schedule and value is not None and not warms:
            yield Contradiction(
                (f"{_KWARGS}.{name}", "train.warmup_steps", "train.warmup_ratio"),
                f"{value} without a warm-up",
                "train.warmup_steps or train.warmup_ratio",
                f"set one of the two, or remove {_KWARGS}.{name}",
                yields=(f"{_KWARGS}.{name}",),
            )
    decays = given.decay_type or "cosine"
    if (
        train.lr_scheduler_type == "warmup_stable_decay"
        and given.num_cycles is not None
        and decays != "cosine"
    ):
        yield Contradiction(
            (f"{_KWARGS}.num_cycles", f"{_KWARGS}.decay_type"),
            f"{given.num_cycles:g} with decay_type {decays}",
            "decay_type cosine, which alone has waves",
            f"remove {_KWARGS}.num_cycles",
            yields=(f"{_KWARGS}.num_cycles",),
        )


def stage_rules(train: TrainSection, steps: int) -> Iterator[Contradiction]:
    """Yield stages of warmup_stable_decay that are not those of the run.

    Args:
        train: Says how long each stage is.
        steps: Optimizer steps of the whole run, which a recipe in epochs learns from its data.
    """
    given = schedule_arguments(train.lr_scheduler_kwargs)
    decay, stable = given.get("num_decay_steps"), given.get("num_stable_steps")
    if train.lr_scheduler_type != "warmup_stable_decay" or decay is None:
        return
    warmup = train.warmup_steps or math.ceil(steps * (train.warmup_ratio or 0))
    length = "max_steps" if train.max_steps is not None else "num_train_epochs"
    keys = (f"{_KWARGS}.num_decay_steps", f"{_KWARGS}.num_stable_steps", f"train.{length}")
    total = warmup + (stable or 0) + decay
    told = f"{decay} steps after {warmup} of warm-up"
    told += "" if stable is None else f" and {stable} at the full rate"
    if total > steps:
        yield Contradiction(
            keys,
            f"{told}, {total} of a run of {steps}",
            "stages that fit into the run",
            f"lower one of them, or raise train.{length}",
        )
    elif stable is not None and total < steps and not given.get("min_lr_ratio"):
        yield Contradiction(
            (keys[1], keys[0], keys[2]),
            f"{told}, {total} of a run of {steps}",
            "no step at rate 0, which trains nothing",
            f"remove {keys[1]}, which is then what is left of the run",
        )


def never_decays(train: TrainSection) -> str | None:
    """Return why the last step is trained at the full rate, or nearly; ``None`` where it is not."""
    schedule, given = train.lr_scheduler_type, schedule_arguments(train.lr_scheduler_kwargs)
    if schedule.startswith("constant"):
        return f"{schedule} keeps the rate"
    lowest = given.get("min_lr_rate", given.get("min_lr_ratio"))
    if "min_lr" in given:
        lowest = given["min_lr"] / train.learning_rate
    if lowest is not None and lowest >= 1:
        return f"{schedule} ends at the rate it begins with"
    cycles = given.get("num_cycles")
    waves = schedule.startswith("cosine") and schedule != "cosine_with_restarts"
    if schedule == "warmup_stable_decay" and given.get("decay_type", "cosine") == "cosine":
        # What comes after the stages is at the lowest rate; without one there is no after.
        waves = "num_stable_steps" not in given or not given.get("min_lr_ratio")
    if waves and cycles is not None and float(cycles).is_integer():
        return f"num_cycles {cycles:g} are whole waves of the cosine, which end at the top"
    return None
