"""The first recipe: from a data file, a model and a card to a short recipe that fits; no torch.

``look`` reads the data, ``columns`` maps rows of an unknown shape, ``goals`` says what they are
for, ``sizes`` chooses lengths, batches and epochs, ``fit`` plans from the best settings to the
smallest, and ``write`` puts it all into a file. ``gptoss-tune init`` asks and calls ``write``.
"""

from gptoss_tune.workflows.first_recipe.look import DataLook, look_at
from gptoss_tune.workflows.first_recipe.write import (
    Answers,
    FirstRecipe,
    HeldOut,
    first_recipe,
    held_out_of,
)

__all__ = [
    "Answers",
    "DataLook",
    "FirstRecipe",
    "HeldOut",
    "first_recipe",
    "held_out_of",
    "look_at",
]
