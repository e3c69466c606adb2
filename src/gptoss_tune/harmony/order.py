"""The order of the rows in an epoch: a function of seed and epoch alone.

Every rank computes the whole order and takes its own part, so the number of ranks decides who reads
a row and never which rows make up a step; a run resumed in the middle of an epoch reads on where it
stopped. A shuffle per rank was the alternative: it changes with the number of ranks, and none of it
can be resumed on another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class EpochOrder:
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
