"""Mismatched answers for KTO: each prompt with the answer of another sample.

KTO holds a model to its reference by how much likelier it makes answers that have nothing to do
with the prompt (its z0). The partners are drawn once for a data set, not from the micro-batch, so
that the estimate depends neither on its size nor on the number of ranks, and the reference's
log-probabilities of these texts can be computed once. Partners have answers of like length, so that
a row of mismatched documents is about as long as the row that it belongs to; drawn without a look
at the lengths (rejected), one row of 2,048 tokens got 7,894 of them. No row is longer than
``data.max_length``: what is past it is cut off the longest answers.

See Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, arXiv 2402.01306.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gptoss_tune.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_MOST_TRIES: Final = 64
"""How far a partner with another prompt is looked for, before any other sample does."""


def partners(
    prompt_keys: NDArray[np.uint64], answers: NDArray[np.integer], *, seed: int
) -> NDArray[np.int64]:
    """Return for each sample the one whose answer it is given, ``[n]``, drawn by the seed.

    Neighbours in the order of their lengths exchange answers; one of the same prompt takes that of
    the nearest sample with another, unless nearly all have the same.

    Args:
        prompt_keys: ``[n]`` hashes of the prompts.
        answers: ``[n]`` tokens of each answer.
        seed: Of the order among answers of one length.

    Raises:
        DataError: There is one sample alone.
    """
    count = len(prompt_keys)
    if count < 2:
        raise DataError(
            "KTO measures the model against its reference on answers of other rows, and there is "
            "one row alone; add rows, or hold more of them out"
        )
    drawn = np.random.Generator(np.random.PCG64([seed, 3])).permutation(count)
    order = drawn[np.argsort(answers[drawn], kind="stable")]
    keys = prompt_keys[order]
    chosen = np.arange(count) ^ 1
    if count % 2:  # the last three go round
        chosen[-3:] = np.array([count - 2, count - 1, count - 3])[-min(3, count) :]
    for place in np.flatnonzero(keys[chosen] == keys):
        chosen[place] = _nearest_other(keys, int(place), int(chosen[place]))
    found = np.empty(count, dtype=np.int64)
    found[order] = order[chosen]
    return found


def _nearest_other(keys: NDArray[np.uint64], place: int, else_this: int) -> int:
    """Return the nearest place with another key than that of ``place``."""
    for step in range(1, _MOST_TRIES + 1):
        for other in (place - step, place + step):
            if 0 <= other < len(keys) and keys[other] != keys[place]:
                return other
    return else_this


def answers_that_fit(
    prompts: NDArray[np.integer],
    answers: NDArray[np.integer],
    starts: NDArray[np.integer],
    max_length: int,
) -> NDArray[np.int64]:
    """Return how many tokens of each answer are taken, so that no row is over ``max_length``.

    Args:
        prompts: ``[n]`` tokens of the prompts, row after row.
        answers: ``[n]`` tokens of the answers that they are given, at least 1.
        starts: ``[rows]`` where each row begins.
        max_length: Tokens of a row.
    """
    taken = answers.astype(np.int64)
    for first, last in zip(starts, [*starts[1:], len(prompts)], strict=True):
        room = max_length - int(prompts[first:last].sum())
        own = taken[first:last]
        most = int(own.max())
        while own.sum() > room and most > 1:
            over = int(own.sum()) - room
            longest = int((own == most).sum())
            below = own[own < most]
            step = min(most - (int(below.max()) if len(below) else 1), -(-over // longest))
            most -= max(1, step)
            np.minimum(own, most, out=own)
    return taken


def mismatched(
    asked: pa.Table, answered: pa.Table, starts: NDArray[np.integer], *, max_length: int
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int32]]:
    """Return the token columns of mismatched documents, end to end, and the length of each.

    Args:
        asked: Samples that give their prompts: rows of a rendering of preferences.
        answered: As many that give their answers; of each, the first document counts.
        starts: Which of them begin a row.
        max_length: Tokens of a row.
    """
    parts: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("input_ids", "loss_weights", "channels")
    }
    sides = [{name: table[name].combine_chunks() for name in parts} for table in (asked, answered)]
    prompts, begins = (table["prompt"].to_numpy() for table in (asked, answered))
    listed = answered["documents"].combine_chunks()
    ends = listed.flatten().to_numpy()[listed.offsets.to_numpy()[:-1] - listed.offsets[0].as_py()]
    taken = answers_that_fit(prompts, ends - begins, starts, max_length)
    for row, (prompt, begin, tokens) in enumerate(zip(prompts, begins, taken, strict=True)):
        for name, found in parts.items():
            question, answer = (side[name][row].values.to_numpy() for side in sides)
            found += [question[:prompt], answer[begin : begin + tokens]]
    columns = {name: np.concatenate(found) for name, found in parts.items()}
    columns["loss_weights"] = (columns["loss_weights"] != 0).astype(np.float32)
    return columns, (prompts + taken).astype(np.int32)
