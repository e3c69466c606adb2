"""The cards of a first recipe: those that are here, or one that was named."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from gptoss_tune.plan.gpus import Gpu, card, detected_gpus
from gptoss_tune.workflows.first_recipe.fit import Machine


@dataclass(frozen=True, slots=True)
class Cards:
    """What was found on this machine.

    Attributes:
        machine: The cards to train on by default; ``None`` where none is here, or known.
        said: In words, for a question.
    """

    machine: Machine | None
    said: str


def cards_here() -> Cards:
    """Return the cards of this machine: of several kinds those with the most memory together."""
    found = detected_gpus()
    if not found:
        return Cards(None, "no GPU is detected here")
    known: Counter[Gpu] = Counter()
    for one in found:
        if one.planned_as is not None:
            known[one.planned_as] += 1
    names = ", ".join(
        f"{count} x {name}" if count > 1 else name
        for name, count in Counter(one.name for one in found).items()
    )
    if not known:
        return Cards(None, f"detected: {names}, too small to plan for")
    best, count = max(known.items(), key=lambda entry: (entry[0].memory_gib, entry[1]))
    return Cards(Machine(best, count), f"detected: {names}")


def machine_of(text: str) -> Machine:
    """Return what ``rtx4090-24gb`` or ``4 x h100-80gb`` names.

    Raises:
        RecipeError: No card of that name is known.
    """
    several = re.fullmatch(r"\s*(\d{1,4})\s*x\s+(.+)", text)
    if several is None or int(several[1]) < 1:
        return Machine(card(text.strip()))
    return Machine(card(several[2].strip()), int(several[1]))
