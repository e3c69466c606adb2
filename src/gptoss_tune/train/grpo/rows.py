"""Groups to rows: advantages and weights on tokens, samples packed, rows dealt over the ranks.

Which samples share a row is decided over the whole step, before the rows are dealt: it is the same
on any number of ranks. Longest first, rows go round the ranks, so that all have about as many
tokens and micro-batches hold rows of like length; all ranks have as many micro-batches, the last
of some a filler.

N tokens of a row, S samples in it, L layers, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gptoss_tune.harmony.dataset.packing import pack
from gptoss_tune.model.routing import NO_CHOICE
from gptoss_tune.train.grpo.advantages import token_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gptoss_tune.recipe.schema import GrpoSection
    from gptoss_tune.train.rollouts.groups import Group
    from gptoss_tune.train.rollouts.played import Played

Row = dict[str, Any]
"""Arrays ``[N]`` by name: ``input_ids``, ``position_ids``, ``channels``; and of predicting token n
``loss_weights``, ``advantages``, ``sampler_logps`` and, once known, ``old_logps`` and
``reference_logps``, 0 where nothing is trained; ``choices [N, L, K]``; of the samples their
``tasks [S]`` and the entries of ``data.train`` that these are from, ``sources [S]``."""
_COLUMNS = (
    *("input_ids", "position_ids", "channels"),
    *("loss_weights", "advantages", "sampler_logps"),
)


def micro_batches(rows: Sequence[Row], rows_each: int, ranks: int, rank: int) -> list[list[Row]]:
    """Return one rank's micro-batches, as many as every other's; an empty one is a filler."""
    mine = list(rows[rank::ranks])
    most = max(1, -(-len(rows) // ranks))
    return [mine[start : start + rows_each] for start in range(0, most, rows_each)]


def step_rows(
    groups: Sequence[Group],
    advantages: Mapping[int, NDArray[np.float64]],
    section: GrpoSection,
    max_length: int,
    dataset_of: Callable[[int], int] = lambda task: 0,
) -> list[Row]:
    """Return the rows of one step, of all ranks, longest first.

    Args:
        groups: Whose episodes are trained.
        advantages: ``[n]`` of the episodes of each group, by its place.
        section: The recipe's method.
        max_length: Tokens of a row, which no sample exceeds.
        dataset_of: From a task's number to that of its entry in ``data.train``.

    Raises:
        ValueError: One does.
    """
    found = [
        (episode, advantage, _trained_tokens(episode, section))
        for group in groups
        for episode, advantage in zip(group.episodes, advantages[group.place], strict=True)
    ]
    weights = token_weights(
        [tokens for _, _, tokens in found], section.average, longest=section.max_new_tokens
    )
    samples = [
        row
        for (episode, advantage, tokens), weight in zip(found, weights, strict=True)
        if tokens
        for row in _samples(episode, float(advantage), float(weight), dataset_of(episode.task))
    ]
    return _packed(samples, max_length)


def _trained_tokens(episode: Played, section: GrpoSection) -> int:
    """Return how many tokens of an episode are trained: none of one that is left out."""
    if episode.ended == "error" or (episode.cut_off and section.overlong == "masked"):
        return 0
    return sum(int(sample.sampled[1:].sum()) for sample in episode.samples)


def _samples(episode: Played, advantage: float, weight: float, dataset: int) -> list[Row]:
    rows = []
    for sample in episode.samples:
        drawn = sample.sampled.astype(np.float32)
        drawn[0] = 0  # predicted from nothing
        row: Row = {
            "input_ids": sample.input_ids,
            "position_ids": np.arange(len(sample.input_ids), dtype=np.int32),
            "channels": sample.channels,
            "loss_weights": drawn * np.float32(weight),
            "advantages": drawn * np.float32(advantage),
            "sampler_logps": sample.logps * drawn,
            "tasks": np.array([episode.task], dtype=np.int64),
            "sources": np.array([dataset], dtype=np.int64),
        }
        if sample.choices is not None:
            row["choices"] = sample.choices
        rows.append(row)
    return rows


def _packed(samples: list[Row], max_length: int) -> list[Row]:
    """Return rows of several samples each, the longest first."""
    if not samples:
        return []
    told = next((one["choices"].shape[1:] for one in samples if "choices" in one), None)
    if told is not None:
        for one in samples:
            shape = (len(one["input_ids"]), *told)
            one.setdefault("choices", np.full(shape, NO_CHOICE, dtype=np.uint8))
    lengths = np.array([len(one["input_ids"]) for one in samples])
    packed = pack(lengths, max_length, seed=0)
    rows = [
        {name: np.concatenate([samples[n][name] for n in packed[number]]) for name in samples[0]}
        for number in range(len(packed))
    ]
    return sorted(rows, key=lambda row: -len(row["input_ids"]))


def to_arrays(steps: Mapping[int, Sequence[Row]]) -> dict[str, NDArray[Any]]:
    """Return the rows of steps as arrays by ``step.row.name``."""
    arrays: dict[str, NDArray[Any]] = {}
    for step, rows in steps.items():
        arrays[f"{step}.rows"] = np.array(len(rows), dtype=np.int64)
        for place, row in enumerate(rows):
            for name, value in row.items():
                arrays[f"{step}.{place}.{name}"] = np.ascontiguousarray(value)
    return arrays


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[int, list[Row]]:
    """Return the steps of ``to_arrays``.

    Raises:
        KeyError, ValueError: These are none.
    """
    found: dict[int, list[Row]] = {}
    for key, value in arrays.items():
        if key.endswith(".rows"):
            found[int(key.partition(".")[0])] = [{} for _ in range(int(value))]
    for key, value in arrays.items():
        if not key.endswith(".rows"):
            step, place, name = key.split(".")
            found[int(step)][int(place)][name] = value
    for rows in found.values():
        for row in rows:
            if any(len(row[name]) != len(row["input_ids"]) for name in _COLUMNS):
                raise ValueError("columns of a row are not of one length")
    return found
