"""A plan drawn: the memory of one card as a bar, with its parts, and what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gptoss_tune.plan.plan import Plan
from gptoss_tune.report.parts.style import colour

_SMALLEST: Final = 0.004
"""Share of the bar below which a part is drawn with the small ones."""


@dataclass(frozen=True)
class Part:
    """A part of the bar.

    Attributes:
        name: Of the kind of memory.
        nbytes: Its size.
        share: Of the bar's width, in percent.
        colour: As CSS.
    """

    name: str
    nbytes: int
    share: float
    colour: str


@dataclass(frozen=True)
class PlanView:
    """A plan as a template draws it.

    Attributes:
        plan: The plan.
        parts: Of the bar, from its left.
        room: Where the card's memory ends on the bar, in percent of its width.
    """

    plan: Plan
    parts: list[Part]
    room: float


def plan_view(plan: Plan) -> PlanView:
    """Return the bar of a plan: as wide as the card's memory, or as the peak where it is more."""
    room = plan.card.memory_bytes
    width = max(room, plan.memory.peak)
    kinds = [(name, size) for name, size in plan.memory.kinds.items() if size]
    small = sum(size for _, size in kinds if size / width < _SMALLEST)
    shown = [(name, size) for name, size in kinds if size / width >= _SMALLEST]
    shown += [("the rest", small)] if small else []
    parts = [
        Part(name, size, 100 * size / width, colour(place))
        for place, (name, size) in enumerate(shown)
    ]
    return PlanView(plan, parts, 100 * room / width)
