"""Several processes that evaluate one model in step.

Every rank answers its share of the questions, but all make the same number of forward passes: with
sharded weights each pass is a collective, and a rank that went ahead would wait for ever. It also
keeps the ranks from drifting apart by more than a token, so that none runs into the process group's
timeout while another is still answering.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

_Item = TypeVar("_Item")


class Ranks:
    """This process among all of them.

    Attributes:
        rank: From 0.
        size: Number of processes.
    """

    def __init__(self) -> None:
        """Take rank and size from torch's process group; alone without one."""
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1

    def share(self, items: Sequence[_Item]) -> list[_Item]:
        """Return this rank's items, as many as every other's; the last may be there twice.

        ``ordered`` puts all shares together again, without what is there twice.
        """
        each = -(-len(items) // self.size)
        mine = list(items[self.rank :: self.size])
        return mine + list(items[-1:]) * (each - len(mine))

    def ordered(self, mine: Sequence[_Item], total: int) -> list[_Item]:
        """Return the results of all ranks' shares in the order of the ``total`` items."""
        if self.size == 1:
            return list(mine)
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, list(mine))
        return [gathered[n % self.size][n // self.size] for n in range(total)]

    def any(self, *flags: bool | torch.Tensor, device: torch.device) -> list[bool]:
        """Return for each flag whether it is set on any rank."""
        states = torch.stack([torch.as_tensor(flag, device=device).float() for flag in flags])
        if self.size > 1:
            dist.all_reduce(states)
        return (states > 0).tolist()
