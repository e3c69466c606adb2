"""Rows of a step to a micro-batch: what every batch has, and what the objective needs of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptoss_tune.model.routing import NO_CHOICE
from gptoss_tune.train.data.collator import Collator
from gptoss_tune.train.grpo.loss import GRPO_KEYS


@dataclass(frozen=True)
class GrpoCollator(Collator):
    """Batches of ``train.grpo.rows``; a batch of no rows is a filler, which trains nothing.

    Attributes:
        columns: What a row says of predicting each token, beside the weight of its loss.
    """

    packed: bool = True
    columns: tuple[str, ...] = GRPO_KEYS

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of ``rows``.

        Returns:
            What ``Collator`` returns, with ``position_ids``; of ``columns`` ``[B, S]`` fp32 what
            the rows have, for the token after each position; and ``choices [B, S, L, K]`` uint8 of
            each position where the rows have them. ``rows`` are numbers of tasks.
        """
        given = [_as_data(row) for row in rows] or [_FILLER]
        batch = super().__call__(given)
        length = batch["input_ids"].shape[1]
        for name in self.columns:
            if not rows:
                batch[name] = torch.zeros(1, length)
            elif name in rows[0]:
                values = self._stack(rows, name, length, 0.0)
                batch[name] = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1)
        if rows and "choices" in rows[0]:
            batch["choices"] = _choices(rows, length)
        batch["rows"] = sorted({int(task) for row in rows for task in row["tasks"]})
        return batch


_FILLER = {
    "input_ids": [0],
    "loss_weights": [0.0],
    "channels": [0],
    "position_ids": [0],
    "filler": True,
}


def _as_data(row: dict[str, Any]) -> dict[str, Any]:
    names = ("input_ids", "loss_weights", "channels", "position_ids", "sources")
    return {name: row[name] for name in names}


def _choices(rows: Sequence[dict[str, Any]], length: int) -> Tensor:
    """Return the experts of each position; of padding the router chooses."""
    shape = rows[0]["choices"].shape[1:]
    found = np.full((len(rows), length, *shape), NO_CHOICE, dtype=np.uint8)
    for number, row in enumerate(rows):
        found[number, : len(row["choices"])] = row["choices"]
    return torch.from_numpy(found)
