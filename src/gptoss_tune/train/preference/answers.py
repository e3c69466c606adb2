"""The answers of a micro-batch: their log-probabilities, summed from those of tokens.

A answers, U pairs or labelled answers, L counted tokens of the longest answer, B rows, S tokens of
a row. Answers stand pair by pair, the chosen one first; labelled ones one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BATCH_KEYS = ("branches", "positions", "reference", "signs", "sample_weights", "kl")
"""What the collator adds for the loss, and the model does not take."""


@dataclass(frozen=True)
class Answers:
    """What an objective is computed from, one entry for each answer.

    Attributes:
        logps: ``[A]`` fp64, summed log-probability of the counted tokens, in nats.
        reference: ``[A]`` fp64, the same under the reference; 0 without one.
        tokens: ``[A]`` fp64, how many tokens count, at least 1.
        signs: ``[A]`` fp64, 1 for a chosen or good answer, -1 for the other.
    """

    logps: Tensor
    reference: Tensor
    tokens: Tensor
    signs: Tensor

    def with_logps(self, logps: Tensor) -> Answers:
        """Return the same answers with other log-probabilities, which may have a gradient."""
        return Answers(logps, self.reference, self.tokens, self.signs)


def take(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the model's part of a batch, and the part of its answers."""
    model = {name: value for name, value in inputs.items() if name not in BATCH_KEYS}
    return model, {name: inputs[name] for name in BATCH_KEYS if name in inputs}


def sums(values: Tensor, positions: Tensor) -> Tensor:
    """Return the sum of ``values`` over the tokens of each answer, ``[A]`` fp64.

    Gathered and summed row by row: the order of the sum is the same on every device and in every
    run, which an addition by index is not on a GPU.

    Args:
        values: ``[B, S]``.
        positions: ``[A, L]`` int64, places in the flattened batch; -1 fills.
    """
    return picked(values, positions).sum(1)


def picked(values: Tensor, positions: Tensor) -> Tensor:
    """Return ``values [B, S]`` at ``positions [A, L]`` in fp64, 0 where there is none."""
    found = values.flatten()[positions.clamp(min=0)].double()
    return found.masked_fill(positions < 0, 0.0)


def answers_of(token_losses: Tensor, batch: dict[str, Any]) -> Answers:
    """Return the answers of a batch.

    Args:
        token_losses: ``[B, S]`` fp32, negative log-probability of each counted target.
        batch: Of ``take``.
    """
    positions = batch["positions"]
    return Answers(
        logps=-sums(token_losses, positions),
        reference=sums(batch["reference"], positions),
        tokens=(positions >= 0).sum(1).clamp(min=1).double(),
        signs=batch["signs"].double(),
    )


def spread(per_answer: Tensor, branches: Tensor) -> Tensor:
    """Return each answer's value at its tokens, ``[B, S]`` fp32, 0 elsewhere.

    Args:
        per_answer: ``[A]``.
        branches: ``[B, S]`` int64, number of the answer from 1; 0: none.
    """
    return torch.cat((per_answer.new_zeros(1), per_answer))[branches].float()
