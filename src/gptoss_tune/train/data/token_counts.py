"""Token counts of a run: by dataset and channel, counted once, kept over a resume.

Counted by the collator, on the CPU, from rows as they go into batches, so that the device is never
waited for; added up here when a step has been made. A step that the guard leaves out trains
nothing: its tokens were read, and are not counted as trained. Integers alone, so a resumed run
holds the same numbers as one that was never stopped.

Counting from the rendered data and the number of epochs was the alternative: it does not know which
rows a run of ``max_steps`` has met, nor what was left out.

S datasets (entries of ``data.train``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gptoss_tune.distributed import sum_over_ranks
from gptoss_tune.errors import CheckpointError
from gptoss_tune.harmony.conversation import CHANNEL_NAMES, TEXT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gptoss_tune.recipe.data_schema import DataSource

_READ = len(CHANNEL_NAMES)


def count_row(row: dict[str, Any]) -> NDArray[np.int64]:
    """Return the tokens of one dataset row by the dataset they come from.

    A token counts as trained where its loss weight is not 0; the first one of a row is predicted
    from nothing and never is.

    Args:
        row: With ``input_ids``, ``loss_weights``, ``channels``, and, in packed rows,
            ``position_ids``; ``sources`` names the dataset of each document (default: 0). A
            ``filler`` (``train.data.sampler``) is no data and counts as nothing.

    Returns:
        ``[largest source + 1, 6]``: trained tokens by ``CHANNEL_NAMES``, and all tokens.
    """
    width = len(CHANNEL_NAMES) + 1
    if row.get("filler"):
        return np.zeros((1, width), dtype=np.int64)
    sources = token_sources(row)
    weights, channels = np.array(row["loss_weights"]), np.asarray(row["channels"], dtype=np.int64)
    weights[0] = 0
    trained = (sources * width + channels)[weights != 0]
    cells = np.concatenate((trained, sources * width + _READ))
    return np.bincount(cells, minlength=(int(sources.max()) + 1) * width).reshape(-1, width)


def token_sources(row: dict[str, Any]) -> NDArray[np.int64]:
    """Return the number of the dataset of each token of a row, which has several when packed."""
    sources = np.asarray(row.get("sources", [0]), dtype=np.int64)
    if "position_ids" in row and len(sources) > 1:
        starts = np.asarray(row["position_ids"]) == 0
        return sources[np.cumsum(starts) - 1]
    return np.full(len(row["input_ids"]), sources[0])


def sum_counts(counts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the sum of counts of several rows, of as many datasets as the largest names."""
    total = np.zeros((max(len(one) for one in counts), len(CHANNEL_NAMES) + 1), dtype=np.int64)
    for one in counts:
        total[: len(one)] += one
    return total


class TokenAccount:
    """Tokens of a run so far; every rank adds its own, and ``total`` sums them.

    Attributes:
        sources: The datasets, in the recipe's order.
    """

    def __init__(self, sources: list[DataSource], device: torch.device) -> None:
        """Start at zero.

        Args:
            sources: ``data.train``.
            device: Where the ranks' sums are made.
        """
        self.sources = sources
        self._device = device
        self._done = np.zeros((len(sources), len(CHANNEL_NAMES) + 1), dtype=np.int64)
        self._step = np.zeros_like(self._done)

    def add(self, counts: NDArray[np.int64]) -> None:
        """Add a micro-batch of the step at hand."""
        self._step[: len(counts)] += counts

    def end_step(self, *, applied: bool) -> None:
        """Enter the step's tokens; those of one that was left out were read and not trained."""
        if not applied:
            self._step[:, :_READ] = 0
        self._done += self._step
        self._step[:] = 0

    def total(self) -> NDArray[np.int64]:
        """Return ``[S, 6]`` of all ranks: trained tokens by channel, and tokens read.

        Every rank has to ask.
        """
        return sum_over_ranks(torch.from_numpy(self._done).to(self._device)).cpu().numpy()

    def read(self) -> int:
        """Return the tokens read by all ranks; every rank has to ask."""
        return int(self.total()[:, _READ].sum())

    def state_dict(self) -> dict[str, Any]:
        """Return what all ranks counted, for a checkpoint; every rank has to ask."""
        return {"channels": CHANNEL_NAMES, "tokens": self.total().tolist()}

    def load_state_dict(self, state: dict[str, Any], *, first_rank: bool) -> None:
        """Go on from a checkpoint's count; rank 0 holds it for all.

        Raises:
            CheckpointError: The checkpoint counts other datasets.
            ArithmeticError, KeyError, TypeError, ValueError: It holds no count.
        """
        done = _by_name(state)
        if done.shape != self._done.shape:
            raise CheckpointError(
                f"counts {done.shape[0] if done.ndim else 0} datasets, the recipe names "
                f"{len(self.sources)}; resume with the recipe of the checkpoint"
            )
        if first_rank:
            self._done = done

    def record(self, total: NDArray[np.int64]) -> dict[str, Any]:
        """Return the account for ``RUN/run.json``."""
        return {
            "read": int(total[:, _READ].sum()),
            "trained": int(total[:, :_READ].sum()),
            "trained_by_channel": _named(total[:, :_READ].sum(axis=0)),
            "by_dataset": [
                {
                    "path": source.path,
                    "weight": source.weight,
                    "read": int(row[_READ]),
                    "trained": int(row[:_READ].sum()),
                    "trained_by_channel": _named(row[:_READ]),
                }
                for source, row in zip(self.sources, total, strict=True)
            ],
        }

    def metrics(self, total: NDArray[np.int64], *, last: bool) -> dict[str, float]:
        """Return the account as figures of a log line.

        Args:
            total: Of all ranks.
            last: The last line also says what each channel and each dataset has.
        """
        trained = total[:, :_READ]
        found = {
            "tokens": float(total[:, _READ].sum()),
            "trained_tokens_total": float(trained.sum()),
        }
        if last:
            by_channel = zip(CHANNEL_NAMES, trained.sum(axis=0).tolist(), strict=True)
            found |= {
                f"trained_tokens_{name}": float(count)
                for name, count in by_channel
                if count or name != TEXT
            }
            by_dataset = enumerate(trained.sum(axis=1).tolist())
            found |= {f"trained_tokens_dataset_{number}": float(n) for number, n in by_dataset}
        return found


def _named(counts: NDArray[np.int64]) -> dict[str, int]:
    """Return counts by channel; raw text stands there where any was trained."""
    named = zip(CHANNEL_NAMES, map(int, counts), strict=True)
    return {name: count for name, count in named if count or name != TEXT}


def _by_name(state: dict[str, Any]) -> NDArray[np.int64]:
    """Return the count of a checkpoint, whose channels may be fewer than there are."""
    tokens = np.asarray(state["tokens"], dtype=np.int64)
    if tokens.ndim != 2:
        return tokens
    names = [*state.get("channels", CHANNEL_NAMES[: tokens.shape[1] - 1]), "read"]
    if tokens.shape[1] != len(names):
        return tokens
    done = np.zeros((len(tokens), len(CHANNEL_NAMES) + 1), dtype=np.int64)
    for column, name in zip(tokens.T, names, strict=True):
        done[:, [*CHANNEL_NAMES, "read"].index(name)] = column
    return done
