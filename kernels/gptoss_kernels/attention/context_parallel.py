"""Attention where a row of tokens is spread over ranks: what one rank's queries see, fetched.

A rank holds two chunks of the row (``RowShard``). The keys that a chunk's queries see are an
interval: from the start of the document that its first token is in, or from ``window - 1`` tokens
before that token, to its own end. So each chunk is one call of the engine with more keys than
queries, causal from the last key, and that is all: one softmax with one sink in it, O' and LSE' as
in ``attention``, and the same exact backward.

What is fetched is the end of every chunk, as much of it as any chunk of the row reaches back to:
``reach``, known to all ranks from the documents once per forward pass. Window layers fetch 127
tokens of each chunk, full layers whole chunks where a document is that long, and where documents
end with the chunks nothing travels. One all-gather brings K and V; backward gathers them again
instead of holding the row, and one reduce-scatter, in fp32, adds dK and dV up at their owners.

Rejected: a ring, which hides a transfer that gpt-oss hardly has (2 KB a token and layer) behind
chunk products, and needs partial results merged by their log-sum-exp and the sink kept out of all
of them; a causal call for the chunk and an unmasked one for what precedes it, merged, which is two
calls and a pass over O for what more keys than queries do in one; sending a halo from neighbour to
neighbour, which saves half a megabyte per rank of what is gathered and pairs sends with receives
across a zigzag.

B rows, S tokens of a row, N ranks, C = S / 2N tokens of a chunk, Hq query heads, Hkv key-value
heads, D head size, P keys before a chunk's first query.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptoss_kernels.attention.attention import sinks_gradient, validate
from gptoss_kernels.attention.documents import Documents, find_documents
from gptoss_kernels.attention.interface import (
    AttentionEngine,
    AttentionRule,
    DifferentiableEngine,
    KeptAttention,
)
from gptoss_kernels.attention.shards import RowShard
from gptoss_kernels.backend import on_device, without_autocast


@dataclass(frozen=True)
class ContextRows:
    """Rows that the ranks of a group share, as all of them know them.

    Attributes:
        shard: This rank's part of each.
        group: The ranks, in the order of their parts.
        documents: The runs of the whole rows, ``[B, S]``.
        run_starts: ``[B][2N]``, the first token of the run that a chunk's first token is in; on the
            host, which cuts tensors by it.
    """

    shard: RowShard
    group: dist.ProcessGroup
    documents: Documents
    run_starts: list[list[int]]
    made: dict[object, Documents] = field(default_factory=dict, repr=False, compare=False)
    """The runs of this rank's chunks, used in every layer."""

    def first_key(self, row: int, chunk: int, window: int | None) -> int:
        """Return the first token that the queries of a chunk see."""
        start = self.run_starts[row][chunk]
        if window is None:
            return start
        return max(start, chunk * self.shard.chunk - window + 1)

    def reach(self, window: int | None) -> int:
        """Return how many tokens before a chunk its queries see, at most: the same on all ranks."""
        size = self.shard.chunk
        return max(
            chunk * size - self.first_key(row, chunk, window)
            for row, starts in enumerate(self.run_starts)
            for chunk in range(len(starts))
        )

    def runs(self, row: int, chunk: int, window: int | None) -> Documents:
        """Return the runs of a chunk's queries on the keys that they see."""
        first_key = self.first_key(row, chunk, window)
        name = (row, chunk, first_key)
        if name not in self.made:
            begin = chunk * self.shard.chunk
            end = begin + self.shard.chunk
            self.made[name] = self.documents.part(row, begin, end, first_key)
        return self.made[name]


def find_context_rows(position_ids: Tensor, group: dist.ProcessGroup) -> ContextRows:
    """Return what all ranks know together about the rows that they share.

    One small all-gather, and the host waits for it: once per forward pass.

    Args:
        position_ids: ``[B, S / N]``, the positions of this rank's tokens, restarting in every
            document; every rank passes its own, of one shape.
        group: The ranks that share the rows.

    Raises:
        ValueError: ``position_ids`` is not two chunks of tokens for each row.
    """
    if position_ids.ndim != 2 or position_ids.shape[1] % 2 or not position_ids.numel():
        raise ValueError(
            f"a rank's position_ids need shape [B, S / ranks] with an even number of tokens, got "
            f"{tuple(position_ids.shape)}"
        )
    batch, local = position_ids.shape
    ranks = dist.get_world_size(group)
    shard = RowShard(local * ranks, ranks, dist.get_rank(group))
    parts = position_ids.unflatten(1, (2, shard.chunk)).movedim(1, 0)
    gathered = _gather(parts, group)
    chunks = [gathered[shard.holder(chunk)] for chunk in range(2 * ranks)]
    whole = torch.cat(chunks, dim=1)
    documents = find_documents(batch, shard.length, whole.device, position_ids=whole)
    starts = documents.first_key[:, :: shard.chunk].tolist()
    return ContextRows(shard, group, documents, starts)


def context_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor,
    *,
    scaling: float,
    rows: ContextRows,
    engine: AttentionEngine | DifferentiableEngine,
    window: int | None = None,
    kept: KeptAttention | None = None,
) -> Tensor:
    """Return this rank's part of what ``attention`` returns for the whole rows.

    Every rank of the group has to call it, forward and backward, in the same order. Gradients of
    query, key and value are complete; that of the sinks is the share of this rank's queries.

    Args:
        query: ``[B, Hq, S / N, D]``, of the tokens ``rows.shard.indices()``, any strides with
            contiguous D.
        key: ``[B, Hkv, S / N, D]``, Hkv a divisor of Hq.
        value: As ``key``.
        sinks: ``[Hq]``, floating, trainable or frozen.
        scaling: Factor of the scores.
        rows: What the rank shares.
        engine: Who computes.
        window: Keys a query sees, itself included; ``None`` for all.
        kept: Filled by a first call and used by the second, which then fetches nothing.

    Returns:
        ``[B, S / N, Hq, D]``, contiguous, dtype of ``query``.

    Raises:
        ValueError: Shapes, dtypes or the window do not fit, or the engine brings its own autograd
            and cannot be given O' and LSE'.
    """
    validate(query, key, value, sinks, window, None)
    expected = (len(rows.run_starts), rows.shard.local_length)
    if (query.shape[0], query.shape[2]) != expected:
        raise ValueError(
            f"this rank holds {expected} tokens of the rows, the query has "
            f"{(query.shape[0], query.shape[2])}"
        )
    if isinstance(engine, DifferentiableEngine):
        raise ValueError(refusal(engine))
    return _ContextAttention.apply(query, key, value, sinks, scaling, window, rows, engine, kept)


def refusal(engine: DifferentiableEngine) -> str:
    """Return why an engine with its own autograd cannot serve a part of a row."""
    return (
        f"{type(engine).__name__} brings its own autograd and no backward from O and LSE, which "
        f"rows spread over ranks need; use torch_flash, fa4, triton or eager"
    )


class _ContextAttention(torch.autograd.Function):
    """One node: communication in both directions, and the engine's calls between."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor,
        scaling: float,
        window: int | None,
        rows: ContextRows,
        engine: AttentionEngine,
        kept: KeptAttention | None,
    ) -> Tensor:
        """Fetch keys and values, run the engine by the chunk, and keep what is this rank's."""
        if kept is not None and kept.out is not None and kept.lse is not None:
            # A view: autograd must not tie this node to the tensor of the first pass.
            out, lse = kept.out.view_as(kept.out), kept.lse
            kept.out = kept.lse = None
        else:
            with without_autocast(query.device), on_device(query):
                out, lse = _forward(query, key, value, sinks, scaling, window, rows, engine)
            if kept is not None:
                kept.out, kept.lse = out.detach(), lse
        ctx.save_for_backward(query, key, value, sinks, out, lse)
        ctx.scaling, ctx.window, ctx.rows, ctx.engine = scaling, window, rows, engine
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Fetch keys and values again; return the gradients of query, key, value and sinks."""
        query, key, value, sinks, out, lse = ctx.saved_tensors
        with without_autocast(query.device), on_device(query):
            grads = _backward(
                grad_out, query, key, value, out, lse, ctx.scaling, ctx.window, ctx.rows, ctx.engine
            )
            grad_sinks = None
            if ctx.needs_input_grad[3]:
                grad_sinks = sinks_gradient(ctx.engine, grad_out, sinks, out, lse)
        return (*grads, grad_sinks, None, None, None, None, None)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor,
    scaling: float,
    window: int | None,
    rows: ContextRows,
    engine: AttentionEngine,
) -> tuple[Tensor, Tensor]:
    """Return O' ``[B, S / N, Hq, D]`` and LSE' ``[B, Hq, S / N]``."""
    batch, heads, length, size = query.shape
    fetched = _fetch(key, value, rows, window)
    out, lses = query.new_empty(batch, length, heads, size), []
    for part in _parts(rows, window):
        rule = AttentionRule(scaling, window, part.runs)
        here = (part.row, slice(None), part.tokens)
        chunk_key, chunk_value = part.keys(key, value, fetched)
        part_out, lse = engine.forward(query[here], chunk_key, chunk_value, sinks, rule)
        out[part.row, part.tokens] = part_out
        lses.append(lse)
    by_row = [torch.cat(lses[n : n + 2], dim=-1) for n in range(0, len(lses), 2)]
    return out, torch.cat(by_row)


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    scaling: float,
    window: int | None,
    rows: ContextRows,
    engine: AttentionEngine,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dQ, dK and dV of this rank's tokens, those of the other ranks' queries added."""
    fetched = _fetch(key, value, rows, window)
    grad_query = torch.empty_like(query)
    grads = torch.empty(2, *key.shape, dtype=lse.dtype, device=key.device)  # dK, dV
    sent = None if fetched is None else torch.zeros_like(fetched, dtype=lse.dtype)
    for part in _parts(rows, window):
        rule = AttentionRule(scaling, window, part.runs)
        here = (part.row, slice(None), part.tokens)
        found = engine.backward(
            grad_out[part.row, part.tokens],
            query[here],
            *part.keys(key, value, fetched),
            out[part.row, part.tokens],
            lse[here].contiguous(),
            rule,
        )
        grad_query[here] = found[0]
        before = part.runs.keys_before
        for kind, grad in enumerate(found[1:]):
            grads[(kind, *here)] = grad[:, :, before:]
            at = 0
            for place in part.fetched_from:
                assert sent is not None
                target = sent[place][kind]
                target += grad[0, :, at : at + target.shape[0]].transpose(0, 1)
                at += target.shape[0]
    if sent is not None:
        # [2, 2, B, tail, Hkv, D]: chunk, dK or dV.
        mine = _add_up(sent, rows.group).permute(1, 2, 4, 0, 3, 5)
        grads.unflatten(3, (2, -1))[..., -mine.shape[4] :, :] += mine
    return grad_query, grads[0].to(key.dtype), grads[1].to(value.dtype)


@dataclass(frozen=True)
class _Part:
    """One chunk of one row: a call of the engine.

    Attributes:
        row: Which row, as a slice of one.
        tokens: Where the chunk is among this rank's tokens.
        runs: Of its queries on their keys.
        fetched_from: Where in what was fetched the keys before the chunk are, in their order: rank,
            chunk of that rank, key and value, row, tokens.
    """

    row: slice
    tokens: slice
    runs: Documents
    fetched_from: list[tuple[int, int, slice, int, slice]]

    def keys(self, key: Tensor, value: Tensor, fetched: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the keys and values that the chunk's queries see, ``[1, Hkv, P + C, D]``."""
        own_key, own_value = (t[self.row, :, self.tokens] for t in (key, value))
        if fetched is None or not self.fetched_from:
            return own_key, own_value
        before = [fetched[place] for place in self.fetched_from]
        both = []
        for kind, own in enumerate((own_key, own_value)):
            pieces = [*(piece[kind] for piece in before), own[0].transpose(0, 1)]
            both.append(torch.cat(pieces).transpose(0, 1)[None])
        return both[0], both[1]


def _parts(rows: ContextRows, window: int | None) -> Iterator[_Part]:
    """Yield this rank's chunks, row by row."""
    shard = rows.shard
    size = shard.chunk
    tail = min(rows.reach(window), size)
    for row in range(len(rows.run_starts)):
        for slot, chunk in enumerate(shard.chunks):
            first_key = rows.first_key(row, chunk, window)
            places = []
            for earlier in range(first_key // size, chunk):
                begin = max(first_key - (earlier + 1) * size + tail, 0)
                tokens = slice(begin, tail)
                places.append((*shard.holder(earlier), slice(None), row, tokens))
            yield _Part(
                slice(row, row + 1),
                slice(slot * size, (slot + 1) * size),
                rows.runs(row, chunk, window),
                places,
            )


def _fetch(key: Tensor, value: Tensor, rows: ContextRows, window: int | None) -> Tensor | None:
    """Return the ends of all chunks, ``[N, 2, 2, B, tail, Hkv, D]``: rank, chunk, K or V.

    ``None`` where no chunk reaches back at all.
    """
    tail = min(rows.reach(window), rows.shard.chunk)
    if tail == 0:
        return None
    ends = [t.unflatten(2, (2, -1))[..., -tail:, :] for t in (key, value)]
    return _gather(torch.stack(ends).permute(3, 0, 1, 4, 2, 5), rows.group)


def _gather(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the parts of all ranks, ``[N, *part.shape]``."""
    gathered = part.new_empty(dist.get_world_size(group), *part.shape)
    # torch renames it, and warns of the old name where it knows the new one.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered.flatten(0, 1), part.contiguous(), group=group)
    return gathered


def _add_up(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return this rank's part of ``[N, ...]``, added up over all ranks."""
    total = torch.empty_like(parts[0])
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    scatter(total, parts.flatten(0, 1), group=group)
    return total
