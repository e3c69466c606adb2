"""Settings of ``train`` for the learning rate's schedule: which there are, and their arguments.

The schedules are transformers' own, under its names, and so are their arguments. Two of its names
are refused: ``reduce_lr_on_plateau`` and ``greedy`` set the rate by what was measured on the way.
Here the rate is a function of the recipe and of the step, so that a run can be continued from any
checkpoint and a curve can be read against its schedule; ``train.early_stopping`` ends a run that
gains nothing any more.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from gptoss_tune.recipe.schema.value_types import Count, FromText, Section, refuse

ScheduleName = Literal[
    "linear",
    "cosine",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "constant",
    "constant_with_warmup",
]
"""A schedule of transformers that is a function of the step."""
BY_MEASUREMENT: Final = ("reduce_lr_on_plateau", "greedy")
"""Those that are not."""
Ramp = Literal["linear", "cosine", "1-sqrt"]


def _by_the_step(value: Any) -> Any:
    """Refuse, with the reason, a schedule that sets the rate by a measurement."""
    if value in BY_MEASUREMENT:
        raise refuse(
            "a schedule whose rate is a function of the step",
            f"{value} follows a measured loss, and a continued run would take another way; use "
            "warmup_stable_decay, or train.early_stopping to end a run that gains nothing",
        )
    return value


Schedule = Annotated[
    ScheduleName, BeforeValidator(_by_the_step, json_schema_input_type=ScheduleName)
]

Share = Annotated[float, Field(ge=0, le=1), FromText]


class ScheduleArguments(Section):
    """Arguments of the schedule, under transformers' names; null: its own default."""

    num_cycles: Annotated[float, Field(gt=0, le=1000), FromText] | None = None
    """Waves of the cosine, 0.5 from the highest rate to the lowest; or how often it restarts."""
    min_lr: Share | None = None
    """Rate at which the cosine ends; either this or min_lr_rate."""
    min_lr_rate: Share | None = None
    """Rate at which the cosine ends, as a share of learning_rate."""
    warmup_lr_rate: Share | None = None
    """Rate at which the warm-up begins, as a share; null: one part of the warm-up's steps."""
    lr_end: Share | None = None
    """Rate at which the polynomial ends; null: 1e-7."""
    power: Annotated[float, Field(gt=0, le=100), FromText] | None = None
    """Exponent of the polynomial; null: 1, a straight line."""
    timescale: Count | None = None
    """The rate falls as 1 / sqrt(step / timescale); null: the steps of the warm-up, or 10,000."""
    num_decay_steps: Count | None = None
    """Steps of the decay at the end of warmup_stable_decay, which has to be told."""
    num_stable_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None
    """Steps at the full rate before it; null: what warm-up and decay leave of the run."""
    warmup_type: Ramp | None = None
    """How the rate rises in warmup_stable_decay; null: linear."""
    decay_type: Ramp | None = None
    """How it falls; null: cosine."""
    min_lr_ratio: Share | None = None
    """Rate from which it rises and to which it falls, as a share of learning_rate; null: 0."""


_TO_A_MINIMUM = ("min_lr", "min_lr_rate", "num_cycles")
ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_min_lr": _TO_A_MINIMUM,
    "cosine_with_restarts": ("num_cycles",),
    "cosine_warmup_with_min_lr": (*_TO_A_MINIMUM, "warmup_lr_rate"),
    "polynomial": ("lr_end", "power"),
    "inverse_sqrt": ("timescale",),
    "warmup_stable_decay": (
        *("num_decay_steps", "num_stable_steps", "min_lr_ratio", "warmup_type", "decay_type"),
        "num_cycles",
    ),
    "constant": (),
    "constant_with_warmup": (),
}
"""Which arguments each schedule takes."""


def schedule_arguments(arguments: ScheduleArguments | None) -> dict[str, Any]:
    """Return the arguments that a recipe gives, as transformers takes them."""
    return {} if arguments is None else arguments.model_dump(exclude_none=True)
