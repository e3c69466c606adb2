"""What a method of training adds to a plan, beside a step of supervised fine-tuning.

``train/methods.py`` says what a method trains with; this table, by the same names, imports no
torch. Both are read by ``method.name`` of a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Added:
    """What comes on top of one forward and one backward pass with the adapters.

    A method that compares each token with the base, the same weights without their adapters, and
    keeps one fp32 probability of it: ``Added(forward_passes=1, bytes_per_token=4)``.

    Attributes:
        forward_passes: Of every trained token, with no gradient.
        base_copies: Further models with the base's sizes, held as the base is.
        bytes_per_token: Kept through a step, for each token of a micro-batch.
    """

    forward_passes: int = 0
    base_copies: int = 0
    bytes_per_token: int = 0


METHODS = {
    "sft": Added(),
}
"""Every method by its name in a recipe."""
