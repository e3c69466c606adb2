"""Lengths, batches, epochs and the held-out share of a first recipe, from a look at its data.

Rules of thumb, each with its reason in the recipe that it writes: an epoch more for little data, at
least some tens of steps, about 32,768 tokens a step where there are enough, and a held-out share
that is neither a handful of rows nor hours of evaluation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from gptoss_tune.workflows.first_recipe.look import DataLook


SHORTEST, USUAL, LONGEST = 1024, 4096, 131_072
_STEP_TOKENS: Final = 32_768
_PREFERENCE_STEP_TOKENS: Final = 16_384
_STEPS: Final = 40
"""Optimizer steps that a run should have at least, where its data allow."""
_EVALUATIONS: Final = 5
_FEWEST_HELD_OUT: Final = 20
"""Rows of a file below which nothing of it is held out."""
_MOST_HELD_OUT: Final = 500


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long, how much at a time, how often.

    Attributes:
        epochs: Passes over the data.
        step_rows: Rows of ``data.max_length`` in an optimizer step, over all GPUs.
        steps: Optimizer steps of the run, estimated.
        every: Steps between two evaluations and two checkpoints.
        epoch_tokens: Tokens of an epoch without what is held out.
    """

    epochs: int
    step_rows: int
    steps: int
    every: int
    epoch_tokens: int


def held_out_share(look: DataLook) -> float | None:
    """Return the share of the rows to hold out; ``None`` where there are too few to spare any."""
    if look.count < _FEWEST_HELD_OUT:
        return None
    share = 0.1 if look.count < 500 else 0.05
    return share if share * look.count <= _MOST_HELD_OUT else _rounded(_MOST_HELD_OUT / look.count)


def needed_length(look: DataLook) -> int:
    """Return the shortest ``data.max_length`` that holds every sample that was seen."""
    length = SHORTEST
    while not look.is_text and length < min(look.longest, LONGEST):
        length *= 2
    return length


def usual_length(look: DataLook, share: float) -> int:
    """Return the ``data.max_length`` to begin with: 4,096 where the data fill some rows of that."""
    length = USUAL
    while length > SHORTEST and look.tokens * (1 - share) < 30 * length:
        length //= 2
    return max(length, needed_length(look))


def worth_packing(look: DataLook, length: int) -> bool:
    """Whether several samples fit one row of this length, or the pieces of a text fill it."""
    return look.is_text or look.mean_tokens < 0.6 * length


def sizes(
    look: DataLook, length: int, *, share: float, preferences: bool, processes: int = 1
) -> Sizes:
    """Return the sizes of a run whose rows are ``length`` tokens long.

    Args:
        look: The data.
        length: ``data.max_length``.
        share: Of the rows, held out.
        preferences: Whether answers are compared: one epoch, and smaller steps.
        processes: GPUs, each of which takes a row of a step at least.
    """
    count = look.count * (1 - share)
    tokens = round(look.tokens * (1 - share))
    epochs = 1 if preferences or look.count >= 20_000 else 3 if look.count < 1_000 else 2
    # Packed rows are nearly full; the others hold one sample each.
    rows = math.ceil(tokens / (0.95 * length)) if worth_packing(look, length) else math.ceil(count)
    step_tokens = _PREFERENCE_STEP_TOKENS if preferences else _STEP_TOKENS
    most = max(1, step_tokens // length)
    step_rows = max(processes, _power_of_two(min(most, max(1, rows * epochs // _STEPS))))
    steps = max(1, rows * epochs // step_rows)
    every = max(1, _rounded_steps(steps / _EVALUATIONS))
    return Sizes(epochs, step_rows, steps, every, tokens)


def _power_of_two(number: int) -> int:
    return 1 << (max(1, number).bit_length() - 1)


def _rounded(share: float) -> float:
    """Return a share with one digit that counts."""
    return float(f"{share:.0e}")


def _rounded_steps(steps: float) -> int:
    """Return steps as a person would write them: 1, 2, 5, 10, 20, 50, ..."""
    usual = [digit * 10**power for power in range(7) for digit in (1, 2, 5)]
    return max((number for number in usual if number <= steps), default=1)
