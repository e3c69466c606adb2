"""Routing: from "token t wants experts i, j, ..." to rows sorted by expert.

The idea: every (token, choice) pair is a row. Rows of one expert lie together, so one grouped
matrix product serves all experts, and inside an expert they keep the order of the tokens, so a
result never depends on the order in which threads ran. Nothing here needs the host to know how many
rows an expert has. Rejected: padding each expert to a capacity, which drops tokens or wastes rows.
"""

# Legend: T tokens, K experts per token, M = T*K rows, E experts.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptoss_kernels.backend import Backend, launch, on_device, require_backend, require_triton

_BLOCK = 64
"""Slots (or tiles) a program of the routing kernels handles."""


@dataclass(frozen=True)
class Routing:
    """Rows sorted by expert, and the way back.

    Worked example, T = 3, K = 2, E = 4, ``router_indices = [[2, 0], [0, 3], [2, 0]]``. Expert 0 is
    wanted by tokens 0, 1 and 2, expert 1 by nobody, expert 2 by tokens 0 and 2, expert 3 by 1::

        token_indices   = [0, 1, 2, 0, 2, 1]          row -> token
        slot_indices    = [1, 2, 5, 0, 4, 3]          row -> t*K + k
        row_indices     = [[3, 0], [1, 5], [4, 2]]    (t, k) -> row
        expert_offsets  = [0, 3, 3, 5, 6]             rows of expert e: offsets[e] : offsets[e+1]

    An index of E or more means "this expert lives on another rank" (expert parallelism): such pairs
    come last, after ``expert_offsets[E]``, their ``row_indices`` are -1 and they count as zero.

    Attributes:
        token_indices: ``[M]`` int32.
        slot_indices: ``[M]`` int32.
        row_indices: ``[T, K]`` int32, -1 where the expert is absent.
        expert_offsets: ``[E + 1]`` int32, first 0; the last is M when no expert is absent.
    """

    token_indices: Tensor
    slot_indices: Tensor
    row_indices: Tensor
    expert_offsets: Tensor

    @property
    def num_experts(self) -> int:
        """E, the experts held here."""
        return self.expert_offsets.shape[0] - 1

    @property
    def num_rows(self) -> int:
        """M, counting the rows of absent experts."""
        return self.token_indices.shape[0]

    @property
    def tokens_per_expert(self) -> Tensor:
        """``[E]`` int32 row counts."""
        return self.expert_offsets.diff()


def route_reference(router_indices: Tensor, num_experts: int) -> Routing:
    """Sort the (token, choice) pairs of ``router_indices`` by expert with torch's stable sort.

    Args:
        router_indices: ``[T, K]`` int32 or int64, not negative; E or more means absent.
        num_experts: E.

    Returns:
        The ``Routing``.
    """
    experts_of_slots = router_indices.flatten().clamp(max=num_experts)
    sorted_experts, slots = torch.sort(experts_of_slots, stable=True)
    rows = torch.arange(slots.numel(), device=slots.device, dtype=torch.int32)
    rows = torch.where(sorted_experts < num_experts, rows, -1)
    row_indices = torch.empty_like(rows).index_copy_(0, slots, rows)
    edges = torch.arange(num_experts + 1, device=slots.device, dtype=sorted_experts.dtype)
    return Routing(
        token_indices=(slots // max(router_indices.shape[1], 1)).to(torch.int32),
        slot_indices=slots.to(torch.int32),
        row_indices=row_indices.view(router_indices.shape),
        expert_offsets=torch.searchsorted(sorted_experts, edges).to(torch.int32),
    )


@dataclass(frozen=True)
class TileMap:
    """Which rows each tile of a grouped product covers; made on the device, read on the device.

    With BLOCK_M = 2 and ``expert_offsets = [0, 3, 3, 5, 6]`` there are four tiles: rows 0:2 and 2:3
    of expert 0, 3:5 of expert 2 and 5:6 of expert 3.

    Attributes:
        expert: ``[bound]`` int32 or more, like the next two.
        start: First row.
        stop: End of the expert's rows.
        count: ``[1]`` int32, tiles in use.
    """

    expert: Tensor
    start: Tensor
    stop: Tensor
    count: Tensor


def route(router_indices: Tensor, num_experts: int, *, backend: Backend = "torch") -> Routing:
    """Sort the (token, choice) pairs of ``router_indices`` by expert, stably.

    Args:
        router_indices: ``[T, K]`` int32 or int64, contiguous, not negative; E or more means absent.
        num_experts: E.
        backend: "torch" sorts; "triton" counts, in three small kernels.

    Returns:
        The ``Routing``; both backends give the same one. The host is never waited for.

    Raises:
        ValueError: A dtype, shape or layout that does not fit, or 2^31 rows and more.
    """
    require_backend(backend)
    if router_indices.dim() != 2 or router_indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"router_indices needs int32 or int64 [T, K], got {router_indices.dtype} "
            f"{tuple(router_indices.shape)}"
        )
    if not router_indices.is_contiguous():
        raise ValueError("router_indices needs to be contiguous; call .contiguous()")
    if num_experts < 1 or router_indices.numel() >= 2**31:
        raise ValueError(
            f"routing needs at least one expert and fewer than 2^31 rows, got {num_experts} "
            f"experts and {router_indices.numel()} rows"
        )
    if backend == "torch" or router_indices.numel() == 0:
        return route_reference(router_indices, num_experts)
    require_triton("route", router_indices)
    with on_device(router_indices):
        return launch_route(router_indices, num_experts)


def launch_route(router_indices: Tensor, num_experts: int) -> Routing:
    """Return ``route`` by the three kernels; the inputs have been checked."""
    from gptoss_kernels._triton import _routing

    rows = router_indices.numel()
    blocks = -(-rows // _BLOCK)
    bins = _power_of_two(num_experts + 1)

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=router_indices.device)

    counts, totals = empty(num_experts + 1, blocks), empty(num_experts + 1)
    routing = Routing(
        empty(rows), empty(rows), empty(*router_indices.shape), empty(num_experts + 1)
    )
    launch(
        _routing._routing_count_kernel,
        (blocks,),
        router_indices,
        counts,
        rows,
        blocks,
        E=num_experts,
        E_PAD=bins,
        BLOCK=_BLOCK,
    )
    launch(_routing._routing_scan_kernel, (num_experts + 1,), counts, totals, blocks, BLOCK=1024)
    launch(
        _routing._routing_scatter_kernel,
        (blocks,),
        router_indices,
        counts,
        totals,
        routing.expert_offsets,
        routing.token_indices,
        routing.slot_indices,
        routing.row_indices,
        rows,
        blocks,
        K=router_indices.shape[1],
        E=num_experts,
        E_PAD=bins,
        BLOCK=_BLOCK,
    )
    return routing


def make_tile_map(expert_offsets: Tensor, block_m: int, num_rows: int) -> TileMap:
    """Return the ``TileMap`` of a product whose tiles have ``block_m`` rows.

    Args:
        expert_offsets: ``[E + 1]`` int32, or a contiguous piece of it for a group of experts.
        block_m: Rows of a tile.
        num_rows: A bound of the rows that the experts have together.

    Returns:
        The map, with room for ``ceil(num_rows / block_m) + E`` tiles: the host knows the bound
        without asking the device for the counts.
    """
    from gptoss_kernels._triton import _routing

    num_experts = expert_offsets.shape[0] - 1
    bound = -(-num_rows // block_m) + num_experts
    # Each of the three starts at an aligned address, whatever the bound: one compiled kernel.
    expert, start, stop = torch.empty(
        (3, -(-bound // _BLOCK) * _BLOCK), dtype=torch.int32, device=expert_offsets.device
    ).unbind()
    count = torch.empty((1,), dtype=torch.int32, device=expert_offsets.device)
    launch(
        _routing._tile_map_kernel,
        (-(-bound // _BLOCK),),
        expert_offsets,
        expert,
        start,
        stop,
        count,
        bound,
        E=num_experts,
        E_PAD=_power_of_two(num_experts),
        BLOCK_M=block_m,
        BLOCK=_BLOCK,
    )
    return TileMap(expert, start, stop, count)


def _power_of_two(value: int) -> int:
    """Return the smallest power of two that is at least ``value``, and at least 2."""
    return max(2, 1 << (value - 1).bit_length())
