"""Rows of answers to batches: the tokens as for any method, and which of them are whose.

B rows, S tokens of a row, A answers of the batch, U pairs or labelled answers, L counted tokens of
the longest answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gptoss_tune.train.data.collator import BATCH_ONLY, Collator

_MULTIPLE = 64
"""Lengths of ``positions`` are rounded up to it, so that few shapes occur."""


@dataclass(frozen=True)
class PreferenceCollator:
    """Turn rows of pairs, or of labelled answers, into one batch.

    Attributes:
        pad_token_id: Fills rows to the length of the longest.
        by_source: Say of each pair or answer which source it is from, for figures of each.
    """

    pad_token_id: int
    by_source: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of ``rows``.

        Args:
            rows: Of ``load_dataset`` for such a method, with ``reference`` (log-probability of each
                token) once that is known.

        Returns:
            What ``Collator`` returns of packed rows, and ``branches [B, S]`` int64 (number of the
            answer that a target belongs to and counts for, from 1; 0: none), ``positions [A, L]``
            int64 (places of an answer's counted targets in the flattened batch, -1 fills),
            ``reference [B, S]`` fp32, ``signs [A]`` fp32, ``sample_weights [U]`` fp32; when asked
            for, ``sources [U]`` int64.
        """
        collate = Collator(self.pad_token_id, packed=True)
        batch = collate(rows)
        shape = batch["input_ids"].shape
        reference = torch.zeros(shape)
        branches = torch.zeros(shape, dtype=torch.int64)
        signs: list[int] = []
        weights: list[float] = []
        sources: list[int] = []
        for index, row in enumerate(rows):
            if "reference" in row and not row.get("filler"):
                found = torch.as_tensor(row["reference"], dtype=torch.float32)
                reference[index, : len(found) - 1] = found[1:]
            if row.get("filler") or "branches" not in row:
                continue
            numbers, own_signs, own_weights = _answers(row)
            counted = torch.from_numpy(np.where(numbers > 0, numbers + len(signs), 0))
            # As targets are: the token before predicts it.
            branches[index, : len(counted) - 1] = counted[1:]
            signs += own_signs
            weights += own_weights
            sources += _sources(row)
        batch["branches"] = branches
        batch["positions"] = _positions(branches, len(signs))
        batch["reference"] = reference
        batch["signs"] = torch.tensor(signs, dtype=torch.float32)
        batch["sample_weights"] = torch.tensor(weights, dtype=torch.float32)
        if self.by_source:
            batch["sources"] = torch.tensor(sources, dtype=torch.int64)
        return batch


def _answers(row: dict[str, Any]) -> tuple[np.ndarray, list[int], list[float]]:
    """Return whose each token of a row is, ``[S]`` from 1 and 0 for context; signs; weights.

    An answer is what stands in the documents of one sample and sign, in their order.
    """
    documents = np.cumsum(np.asarray(row["position_ids"]) == 0) - 1
    owners = list(zip(row["samples"], row["branches"], strict=True))
    number_of: dict[tuple[int, int], int] = {}
    for owner in owners:
        number_of.setdefault(owner, len(number_of) + 1)
    answers = np.array([number_of[owner] for owner in owners])
    loss_weights = np.array(row["loss_weights"], dtype=np.float32)
    loss_weights[0] = 0  # predicted from nothing
    numbers = np.where(loss_weights != 0, answers[documents], 0)
    weight_of: dict[int, float] = {}
    for (sample, _), number in number_of.items():
        weight_of.setdefault(sample, float(loss_weights[numbers == number].max(initial=0.0)))
    return numbers, [sign for _, sign in number_of], list(weight_of.values())


def _sources(row: dict[str, Any]) -> list[int]:
    """Return the number of the source of each sample of a row, in the order of ``_answers``."""
    found: dict[int, int] = {}
    documents = len(row["samples"])
    for sample, source in zip(row["samples"], row.get("sources", [0] * documents), strict=True):
        found.setdefault(sample, int(source))
    return list(found.values())


def _positions(branches: Tensor, answers: int) -> Tensor:
    flat = branches.flatten().numpy()
    places = [np.flatnonzero(flat == number) for number in range(1, answers + 1)]
    longest = max((len(found) for found in places), default=0)
    filled = np.full((answers, -(-longest // _MULTIPLE) * _MULTIPLE), -1, dtype=np.int64)
    for row, found in zip(filled, places, strict=True):
        row[: len(found)] = found
    return torch.from_numpy(filled)


def mismatched(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mismatched documents of labelled answers as rows of one answer each; see KTO.

    A filler stays one.
    """
    return [row if row.get("filler") else _mismatched(row) for row in rows]


def _mismatched(row: dict[str, Any]) -> dict[str, Any]:
    found = {
        name.removeprefix("kl_"): value for name, value in row.items() if name.startswith("kl_")
    }
    documents = int((np.asarray(found["position_ids"]) == 0).sum())
    return {**found, "samples": list(range(documents)), "branches": [1] * documents}


@dataclass(frozen=True)
class KtoCollator(PreferenceCollator):
    """Batches of labelled answers, with a batch of their mismatched documents as ``kl``."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of ``rows``, which have the columns ``kl_...``, and that other one."""
        batch = super().__call__(rows)
        other = super().__call__(mismatched(rows))
        batch["kl"] = {name: value for name, value in other.items() if name not in BATCH_ONLY}
        return batch
