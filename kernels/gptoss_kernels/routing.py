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
