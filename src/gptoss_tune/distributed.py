"""Collectives: sums, maxima and gathers over all ranks; a single process answers itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return ``values`` added up over all ranks, in a tensor of its own."""
    total = values.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def max_over_ranks(values: Tensor) -> Tensor:
    """Return the largest of ``values`` over all ranks, each for itself, in a tensor of its own."""
    most = values.clone()
    if world_size() > 1:
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return most


def gather_over_ranks(value: Any) -> list[Any]:
    """Return every rank's ``value``, in their order."""
    gathered: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(gathered, value)
    return gathered


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
