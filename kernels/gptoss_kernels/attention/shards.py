"""Which tokens of a row a rank holds, where several ranks share it (context parallel).

A row is cut into ``2 * ranks`` chunks, and a rank holds two: one from the front and its mirror from
the back. A query sees what comes before it, so a chunk's work in a full layer grows with its
number, and every such pair costs the same.

Rejected: one chunk a rank, where the last rank does ``2 * ranks - 1`` times the work of the first;
every ``ranks``-th token, which is balanced too and gives every token of a window layer a neighbour
on another rank.

Worked example, a row of 8 on 2 ranks::

    chunk         0    1    2    3
    tokens       0 1  2 3  4 5  6 7
    rank          0    1    1    0

S tokens of the whole row, N ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowShard:
    """One rank's share of a row; the module's docstring has an example.

    Attributes:
        length: S, of the whole row; a multiple of ``2 * ranks``.
        ranks: N, over how many the row is spread.
        rank: Which of them, from 0.
    """

    length: int
    ranks: int
    rank: int

    def __post_init__(self) -> None:
        """Refuse what cannot be dealt out.

        Raises:
            ValueError: No ranks, a rank that is none of them, or a length that is not a positive
                multiple of ``2 * ranks``.
        """
        if self.ranks < 1:
            raise ValueError(f"a row is spread over at least 1 rank, got {self.ranks}")
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank must be from 0 to {self.ranks - 1}, got {self.rank}")
        if self.length < 1 or self.length % (2 * self.ranks):
            raise ValueError(
                f"a row over {self.ranks} ranks needs a length that is a positive multiple of "
                f"{2 * self.ranks}, got {self.length}; pad it to padded_length(length, ranks)"
            )

    @property
    def chunk(self) -> int:
        """Tokens of a chunk, ``S / 2N``."""
        return self.length // (2 * self.ranks)

    @property
    def chunks(self) -> tuple[int, int]:
        """The numbers of this rank's chunks, in their order in the row."""
        return self.rank, 2 * self.ranks - 1 - self.rank

    @property
    def local_length(self) -> int:
        """Tokens that this rank holds, ``S / N``."""
        return 2 * self.chunk

    def holder(self, chunk: int) -> tuple[int, int]:
        """Return which rank holds a chunk, and whether as its first (0) or second (1)."""
        return (chunk, 0) if chunk < self.ranks else (2 * self.ranks - 1 - chunk, 1)

    def indices(self, device: torch.device | str | None = None) -> Tensor:
        """Return the numbers in the row of this rank's tokens, ``[S / N]`` int64, ascending."""
        size = self.chunk
        return torch.cat(
            [torch.arange(n * size, (n + 1) * size, device=device) for n in self.chunks]
        )


def padded_length(length: int, ranks: int) -> int:
    """Return the smallest multiple of ``2 * ranks`` that holds ``length`` tokens.

    Raises:
        ValueError: There are no tokens or no ranks.
    """
    if length < 1 or ranks < 1:
        raise ValueError(f"length and ranks must be at least 1, got {length} and {ranks}")
    return -(-length // (2 * ranks)) * 2 * ranks
