"""Asking all ranks: the few questions a run puts to its processes; one process answers itself."""

from __future__ import annotations

from typing import Any

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


def gather_over_ranks(value: Any) -> list[Any]:
    """Return every rank's ``value``, in their order."""
    gathered: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(gathered, value)
    return gathered
