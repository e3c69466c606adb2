"""Mismatched answers for KTO: each prompt with the answer of another sample.

KTO holds a model to its reference by how much likelier it makes answers that have nothing to do
with the prompt (its z0). The partners are drawn once for a data set, not from the micro-batch, so
that the estimate depends neither on its size nor on the number of ranks, and the reference's
log-probabilities of these texts can be computed once.

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


def partners(prompt_keys: NDArray[np.uint64], *, seed: int) -> NDArray[np.int64]:
    """Return for each sample the one whose answer it is given, ``[n]``, drawn by the seed.

    It is one of another prompt, unless nearly all have the same.

    Raises:
        DataError: There is one sample alone.
    """
    count = len(prompt_keys)
    if count < 2:
        raise DataError(
            "KTO measures the model against its reference on answers of other rows, and there is "
            "one row alone; add rows, or hold more of them out"
        )
    order = np.random.Generator(np.random.PCG64([seed, 3])).permutation(count)
    keys = prompt_keys[order]
    chosen = np.roll(np.arange(count), -1)
    for step in range(2, min(count, _MOST_TRIES + 2)):
        same = keys[chosen] == keys
        if not same.any():
            break
        chosen[same] = (np.flatnonzero(same) + step) % count
    found = np.empty(count, dtype=np.int64)
    found[order] = order[chosen]
    return found


def mismatched(
    asked: pa.Table, answered: pa.Table, *, max_length: int
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int32]]:
    """Return the token columns of mismatched documents, end to end, and the length of each.

    Args:
        asked: Samples that give their prompts: rows of a rendering of preferences.
        answered: As many that give their answers; of each, the first document counts.
        max_length: Tokens of a document; an answer that goes past it is cut there.
    """
    parts: dict[str, list[NDArray[Any]]] = {
        name: [] for name in ("input_ids", "loss_weights", "channels")
    }
    lengths = np.empty(len(asked), dtype=np.int32)
    sides = [
        {name: table[name].combine_chunks() for name in (*parts, "documents", "prompt")}
        for table in (asked, answered)
    ]
    for row in range(len(asked)):
        (prompt, _), (begin, end) = (
            (side["prompt"][row].as_py(), side["documents"][row].values[0].as_py())
            for side in sides
        )
        end = min(end, begin + max_length - prompt)
        for name, found in parts.items():
            question, answer = (side[name][row].values.to_numpy() for side in sides)
            found += [question[:prompt], answer[begin:end]]
        lengths[row] = prompt + end - begin
    columns = {name: np.concatenate(found) for name, found in parts.items()}
    columns["loss_weights"] = (columns["loss_weights"] != 0).astype(np.float32)
    return columns, lengths
