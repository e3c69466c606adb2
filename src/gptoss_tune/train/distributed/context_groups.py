"""Which processes share a row (context parallel), and which train rows of their own.

The processes of a run are a table: a line for each data-parallel group, a column for each part of
a row. Those of a line hold the parts of the same rows; every line has rows of its own. torch's
device mesh makes the table and the communicators of its lines; neighbours in number share a line,
so a row stays on one machine where the machine has enough GPUs. FSDP2 spreads the model over all
processes whatever the table, because a share of the model belongs to no row.

Six processes, ``context_parallel`` 2::

    rows 0, 3, 6, ...   process 0 1
    rows 1, 4, 7, ...   process 2 3
    rows 2, 5, 8, ...   process 4 5

Accelerate's ``ParallelismConfig`` was the alternative: it makes the same mesh, and then shards the
batch itself by torch's ring attention, which has neither sinks nor windows, and wants its own FSDP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from gptoss_tune.errors import MachineError
from gptoss_tune.model.parallel.context import set_context_parallel
from gptoss_tune.train.distributed.watchdog import COLLECTIVE_TIMEOUT


@dataclass(frozen=True)
class ContextGroups:
    """This process's place in the table of the module's docstring.

    Attributes:
        data_ranks: Lines: how many groups train rows of their own.
        data_rank: This process's line.
        context_ranks: Columns: how many processes share a row.
        context_rank: This process's column, and so its part of a row.
        group: The communicator of its line; ``None`` where a process has its rows for itself.
    """

    data_ranks: int = 1
    data_rank: int = 0
    context_ranks: int = 1
    context_rank: int = 0
    group: dist.ProcessGroup | None = None

    @property
    def counts_rows(self) -> bool:
        """Whether what is known of whole rows is counted here: once for all that share them."""
        return self.context_rank == 0


def context_groups(context_parallel: int, device: torch.device) -> ContextGroups:
    """Return this process's place; every process has to call it, since groups are made.

    Args:
        context_parallel: ``distributed.context_parallel``.
        device: Of this process; its kind decides what the groups talk through.

    Raises:
        MachineError: The processes that were started do not make whole groups.
    """
    together = dist.is_available() and dist.is_initialized()
    rank, processes = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    if processes % context_parallel:
        raise MachineError(
            f"distributed.context_parallel is {context_parallel}, and {processes} processes were "
            "started, which do not make whole groups of that size; start a multiple of it, or set "
            f"another distributed.context_parallel"
        )
    if context_parallel == 1:
        return ContextGroups(processes, rank)
    shape = (processes // context_parallel, context_parallel)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "context"))
    group = mesh.get_group("context")
    # A process waits here for the others as long as it does anywhere else: the watchdog looks.
    dist.distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT, group)
    data_rank, context_rank = mesh.get_coordinate() or (0, 0)
    return ContextGroups(*(shape[0], data_rank, shape[1], context_rank), group)


def share_rows(model: nn.Module, groups: ContextGroups) -> None:
    """Let ``model`` compute its part of rows that its group shares; a group of one: nothing.

    Raises:
        MachineError: Its attention engine cannot serve a part of a row.
    """
    if groups.group is None:
        return
    try:
        set_context_parallel(model, groups.group)
    except ValueError as error:
        raise MachineError(f"distributed.context_parallel: {error}") from error


@contextmanager
def whole_rows(model: nn.Module, groups: ContextGroups) -> Iterator[None]:
    """Let each process compute rows of its own in the body, as answering prompts does."""
    if groups.group is None:
        yield
        return
    set_context_parallel(model, None)
    try:
        yield
    finally:
        set_context_parallel(model, groups.group)
