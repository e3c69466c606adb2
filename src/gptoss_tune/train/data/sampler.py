"""Samplers: the same rows in every optimizer step, on any number of ranks.

Rows are taken from the order of the epoch in steps of ``batch_size x accumulation x ranks``; within
a step, batches go round the ranks. So the three numbers may change between a run and its
continuation as long as their product does not. The last step of an epoch has the rows that are
left; a rank without rows in a micro-batch trains a filler, a row of loss weight 0, because all
ranks have to meet in every backward pass.

Ranks here are those that train rows of their own: processes that share each row (context parallel)
are one rank, and are dealt the same rows.

Accelerate's ``BatchSamplerShard`` was the alternative: it fills the last batches with rows from the
start of the epoch, which are then trained twice, and other ones on every number of ranks.

Eight rows left, batches of 2, two ranks, accumulation 3 (12 rows a step)::

    rank 0: [0 1] [4 5]
    rank 1: [2 3] [6 7]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILLER = -1
"""Index of a row that trains nothing."""


class MicroBatchSampler(BatchSampler):
    """One rank's micro-batches of an epoch, as lists of row indices."""

    def __init__(self, order: Any, batch_size: int, *, ranks: int, rank: int) -> None:
        """Deal the rows of ``order``.

        Args:
            order: Iterable over all rows of an epoch, with a length and perhaps a ``set_epoch``.
            batch_size: Rows of a micro-batch.
            ranks: How many train rows of their own.
            rank: This one's number.
        """
        self.sampler = order
        self.batch_size, self.num_processes = batch_size, ranks
        self.drop_last = False
        self._rank = rank

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield this rank's micro-batches."""
        rows = list(self.sampler)
        width = self.batch_size * self.num_processes
        for first in range(0, len(rows), width):
            start = first + self._rank * self.batch_size
            yield rows[start : start + self.batch_size] or [FILLER]

    def __len__(self) -> int:
        """Return the number of micro-batches, the same on every rank."""
        return -(-len(self.sampler) // (self.batch_size * self.num_processes))


def batches_of(lengths: NDArray[np.integer]) -> list[list[int]]:
    """Return which rows go through the model together: as they follow, the longest row's tokens.

    That one has to fit in any case. Neither the micro-batch nor the number of ranks is asked: what
    shares a batch decides a row's last bits, and a continuation that computes the values again is
    to find the same.

    Args:
        lengths: ``[rows]`` tokens of each row.
    """
    padded = -(-lengths // 8) * 8  # as the collator rounds them
    most = int(padded.max())
    batches: list[list[int]] = []
    widest = 0
    for index, length in enumerate(padded.tolist()):
        widest = max(widest, length)
        if batches and (len(batches[-1]) + 1) * widest <= most:
            batches[-1].append(index)
        else:
            batches.append([index])
            widest = length
    return batches


class DatasetWithFiller(torch.utils.data.Dataset):
    """A dataset that also has the row ``FILLER``: one token, of loss weight 0."""

    def __init__(self, dataset: Any) -> None:
        """Stand before ``dataset``."""
        self._dataset = dataset

    def __len__(self) -> int:
        """Return the number of rows, the filler not among them."""
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row; the filler has no number, as no file holds it, and says what it is."""
        if index != FILLER:
            return self._dataset[index]
        columns = ("input_ids", "loss_weights", "channels", "position_ids")
        first = {name: self._dataset[0].get(name) for name in columns}
        row = {name: value[:1] for name, value in first.items() if value is not None}
        return {**row, "loss_weights": [0.0], "filler": True}


class EpochSampler:
    """Sampler over the row indices of an epoch; set the epoch with ``set_epoch``.

    Args:
        size: Number of rows.
        seed: Of every epoch's order.
        phases: ``[size]`` numbers; rows of a lower phase come first (a curriculum), each phase in
            its own drawn order. None: one phase.
    """

    def __init__(self, size: int, *, seed: int, phases: NDArray[np.integer] | None = None) -> None:
        """Start at epoch 0.

        Raises:
            ValueError: There is not one phase per row.
        """
        if phases is not None and len(phases) != size:
            raise ValueError(f"{len(phases)} phases for {size} rows; give one per row")
        self.size = size
        self.seed = seed
        self.epoch = 0
        self._phases = phases

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of."""
        self.epoch = epoch

    def indices(self, epoch: int) -> NDArray[np.int64]:
        """Return the row indices of an epoch in order, ``[size]`` int64."""
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        order = generator.permutation(self.size)
        if self._phases is None:
            return order
        return order[np.argsort(np.asarray(self._phases)[order], kind="stable")]

    def __iter__(self) -> Iterator[int]:
        """Yield the indices of the current epoch."""
        yield from self.indices(self.epoch).tolist()

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.size
