"""Which keys a query may see besides the causal rule: the documents that share a row.

Packing puts several conversations into one row; padding puts nothing into a part of it. Both are
the same fact for attention: a row is cut into runs, and a token sees its own run only. Two integers
per token say it all, they are made on the device without telling the host how many runs there are,
and every kernel can skip blocks by them. Padding is a run like any other, so no query is ever left
without a key and no row is NaN.

Rejected: a mask ``[S, S]`` (16 GiB of booleans at 131,072), and only ``cu_seqlens``, whose length
is the number of documents: deriving it on the device makes the host wait in every layer.

Worked example, a row of 8 with documents of 3 and 4 tokens and one token of padding::

    position_ids      0 1 2 0 1 2 3 0
    attention_mask    1 1 1 1 1 1 1 0
    first_key         0 0 0 3 3 3 3 7
    last_query        2 2 2 6 6 6 6 7
    cu_seqlens        0 3 7 8

Where a row is spread over ranks, queries are a part of it and their keys reach back further: the
first ``P`` keys come before the first query and are of its run. ``first_key`` then counts keys,
from the first that is there, and ``last_query`` counts queries. The tokens 2 to 6 of the row above
as queries on the keys 1 to 6, P = 1::

    first_key           0 2 2 2 2
    last_query        0 0 4 4 4 4
    cu_seqlens          0 1 5
    cu_seqlens_keys   0 2 6

B rows, S tokens of a row, P keys before the first query.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """The runs of tokens that see each other; the module's docstring has an example.

    Attributes:
        first_key: ``[B, S]`` int32, the first token of the run that a token belongs to.
        last_query: ``[B, P + S]`` int32, the last token of that run.
        known_cu_seqlens: ``[n + 1]`` int32 over the ``B * S`` tokens in row order, where the caller
            has it; ``cu_seqlens()`` makes it otherwise.
        known_max_length: The longest run, where the caller knows it; ``S`` serves as its bound.
    """

    first_key: Tensor
    last_query: Tensor
    known_cu_seqlens: Tensor | None = None
    known_max_length: int | None = None
    made: dict[object, Any] = field(default_factory=dict, repr=False, compare=False)
    """What engines derive from the runs once and use in every layer, by their own keys."""

    @property
    def max_length(self) -> int:
        """A bound on the length of a run."""
        return self.known_max_length or self.first_key.shape[1]

    @property
    def keys_before(self) -> int:
        """P, the keys that come before the first query."""
        return self.last_query.shape[1] - self.first_key.shape[1]

    def part(self, row: int, begin: int, end: int, first_key: int) -> Documents:
        """Return the runs of some queries of a row on the keys that they reach back to.

        Args:
            row: Which one.
            begin: The first query.
            end: The one after the last query, and after the last key.
            first_key: The first key, of the run of ``begin``.

        Returns:
            Of one row, with ``begin - first_key`` keys before the first query.
        """
        rows = slice(row, row + 1)
        return Documents(
            (self.first_key[rows, begin:end] - first_key).clamp(min=0),
            self.last_query[rows, first_key:end].clamp(max=end - 1) - begin,
        )

    def cu_seqlens(self) -> Tensor:
        """Return the starts of all runs and the end, ``[n + 1]`` int32, over ``B * S`` tokens.

        On a GPU, runs that nobody gave as ``cu_seqlens`` have to be counted, and the host waits for
        the count: once per object.
        """
        if self.known_cu_seqlens is not None:
            return self.known_cu_seqlens
        if "cu_seqlens" not in self.made:
            tokens = torch.arange(self.first_key.shape[1], device=self.first_key.device)
            starts = self.first_key == tokens + self.keys_before
            starts[:, 0] = True
            starts = starts.flatten().nonzero().flatten()
            end = torch.full_like(starts[:1], self.first_key.numel())
            self.made["cu_seqlens"] = torch.cat((starts, end)).to(torch.int32)
        return self.made["cu_seqlens"]

    def cu_seqlens_keys(self) -> Tensor:
        """Return ``cu_seqlens()`` as it counts keys: the first run has P more.

        Raises:
            ValueError: Keys come before the queries of several rows: such rows are taken one by
                one.
        """
        if self.keys_before == 0:
            return self.cu_seqlens()
        if self.first_key.shape[0] != 1:
            raise ValueError(
                f"keys before the first query of {self.first_key.shape[0]} rows have no cu_seqlens;"
                f" take the rows one by one"
            )
        if "cu_seqlens_keys" not in self.made:
            ends = self.cu_seqlens()[1:] + self.keys_before
            self.made["cu_seqlens_keys"] = torch.cat((torch.zeros_like(ends[:1]), ends))
        return self.made["cu_seqlens_keys"]

    def whole_rows(self) -> bool:
        """Return whether every row is one run, all there is of it.

        On a GPU the host waits for it, once per object.
        """
        if self.keys_before:
            return False
        if "whole_rows" not in self.made:
            self.made["whole_rows"] = not bool(self.first_key.any())
        return self.made["whole_rows"]


def find_documents(
    batch: int,
    length: int,
    device: torch.device,
    *,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    max_length: int | None = None,
) -> Documents:
    """Return the runs that the given facts imply; a boundary in any of them is a boundary.

    A run starts where ``position_ids`` do not continue by one, where ``attention_mask`` changes
    between 0 and 1, and at every entry of ``cu_seqlens``. No facts: every row is one run.

    Args:
        batch: B.
        length: S.
        device: Where the result is to live.
        position_ids: ``[B, S]`` or ``[1, S]``, integers that restart in every document.
        attention_mask: ``[B, S]``, 0 or False at padding, left or right.
        cu_seqlens: ``[n + 1]`` integers over the ``B * S`` tokens, first 0, last ``B * S``; it must
            name every boundary that the other facts show, and is handed to varlen kernels as it is.
        max_length: The longest run by ``cu_seqlens``.

    Returns:
        The runs.

    Raises:
        ValueError: A shape does not fit ``[batch, length]``.
    """
    facts = (position_ids, attention_mask, cu_seqlens)
    boundary = torch.zeros(batch, length, dtype=torch.bool, device=device)
    boundary[:, :1] = True
    if position_ids is not None:
        _require_shape("position_ids", position_ids, batch, length)
        boundary[:, 1:] |= position_ids.to(device).diff(dim=-1) != 1
    if attention_mask is not None:
        _require_shape("attention_mask", attention_mask, batch, length)
        boundary[:, 1:] |= (attention_mask.to(device) != 0).int().diff(dim=-1) != 0
    if cu_seqlens is not None:
        if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
            raise ValueError(f"cu_seqlens needs shape [n + 1], got {tuple(cu_seqlens.shape)}")
        cu_seqlens = cu_seqlens.to(device, torch.int32)
        boundary = boundary.flatten().index_fill(0, cu_seqlens[:-1].long(), True)
        boundary = boundary.view(batch, length)
    tokens = torch.arange(length, device=device, dtype=torch.int32).expand(batch, length)
    first_key = tokens.where(boundary, 0).cummax(dim=-1).values
    ends = torch.cat((boundary[:, 1:], boundary.new_ones(batch, 1)), dim=-1)
    backwards = tokens.where(ends, length).flip(-1).cummin(dim=-1).values
    return Documents(
        first_key.to(torch.int32).contiguous(),
        backwards.flip(-1).to(torch.int32).contiguous(),
        cu_seqlens,
        max_length if cu_seqlens is not None else None,
        {} if any(fact is not None for fact in facts) else {"whole_rows": True},
    )


def _require_shape(name: str, value: Tensor, batch: int, length: int) -> None:
    if value.ndim != 2 or value.shape[1] != length or value.shape[0] not in (1, batch):
        raise ValueError(
            f"{name} needs shape [{batch}, {length}], got {tuple(value.shape)}; a 4-d mask is not "
            f"a set of documents"
        )
