"""The expert layer in tiles of tokens: a long row costs the memory of a short one.

A token's experts know nothing of its neighbours, so the layer runs tile after tile: forward, and in
backward once more, a tile computed again and its gradients taken before the next. What exists for
all tokens at once is what enters and leaves; the rows of the routed experts, 4 per token and 57 KB
each in backward at the released shapes, exist for one tile.

On our kernels outputs, and the gradients of tokens and routing weights, have the bits of the whole
call: the rows of a product do not know of each other, and engines and kernels are chosen by the
rows of the whole call. (A CPU's BLAS chooses by the rows it gets: there the last digits differ.)
The gradients of the factors are sums over an expert's rows, taken in fp32 tile by tile, so in
another order: each value lies within ``2 M 2**-24`` of the sum of its M products' magnitudes.

The price is decoding: the experts are decoded for each tile, unless both projections fit into the
bound of the scratch (gpt-oss-20b: 1.5 GiB) and stay for all tiles of a pass. Rejected: tiles of
experts instead of tokens, which keep the decoding at one but every token's rows alive.
"""

# Legend: T tokens, K experts per token, H hidden.

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from gptoss_kernels.experts.records import (
    ExpertLayer,
    Gradients,
    KeptRows,
    Needs,
    SortedRows,
    TileInputs,
)


class Tile(NamedTuple):
    """Tokens ``first`` to ``last - 1`` of a call, their sorted rows and what they keep.

    Attributes:
        first: First token.
        last: One past the last.
        rows: Sorted by expert.
        kept: For the backward pass; empty in a forward pass that has yet to come.
    """

    first: int
    last: int
    rows: SortedRows
    kept: KeptRows = KeptRows()


def spans(num_tokens: int, tile_tokens: int | None) -> list[tuple[int, int]]:
    """Return the first token and the end of every tile, all of one size but perhaps the last.

    Args:
        num_tokens: T.
        tile_tokens: Tokens of a tile; ``None``: all of them.
    """
    size = tile_tokens or num_tokens
    if size >= num_tokens:
        return [(0, num_tokens)]
    return [(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def sort_tiles(layer: ExpertLayer, stages: ModuleType, router_indices: Tensor) -> list[Tile]:
    """Return the tiles of a call, sorted, or as the first pass under checkpointing sorted them."""
    parts = spans(router_indices.shape[0], layer.tile_tokens)
    kept = layer.kept
    if kept is not None and kept.of is router_indices and kept.rows is not None:
        rows = kept.rows
    else:
        rows = [stages.sort_rows(layer, router_indices[first:last]) for first, last in parts]
        if kept is not None and kept.keeps_rows:
            kept.of, kept.rows = router_indices, rows
    return [Tile(*part, sorted_rows) for part, sorted_rows in zip(parts, rows, strict=True)]


def forward(
    layer: ExpertLayer, stages: ModuleType, inputs: TileInputs, tiles: Sequence[Tile]
) -> tuple[Tensor, list[Tile]]:
    """Return the output ``[T, H]`` and the tiles with what the layer keeps of each."""
    shared = stages.shared_by_tiles(
        layer,
        inputs.routing_weights.numel(),
        inputs.hidden_states.dtype,
        backward=False,
        reread=len(tiles) > 1,
    )
    out, done = torch.empty_like(inputs.hidden_states) if len(tiles) > 1 else None, []
    for tile in tiles:
        shared.last = tile is tiles[-1]
        part, kept = stages.forward(layer, _cut(inputs, tile), tile.rows, shared)
        if layer.kept is not None or not layer.for_backward:  # it would be thrown away anyway
            kept = KeptRows()
        done.append(tile._replace(kept=kept))
        if out is None:
            return part, done
        out[tile.first : tile.last] = part
        del part
    assert out is not None  # there is a tile, if only an empty one
    return out, done


def backward(
    layer: ExpertLayer,
    stages: ModuleType,
    inputs: TileInputs,
    tiles: Sequence[Tile],
    d_out: Tensor,
    needs: Needs,
) -> Gradients:
    """Return the gradients of a call that ``needs`` asks for, those of the factors in fp32."""
    again = tiles[0].kept.gate_up is None and needs.hidden_states
    shared = stages.shared_by_tiles(
        layer,
        inputs.routing_weights.numel(),
        d_out.dtype,
        backward=True,
        reread=again or len(tiles) > 1,
    )
    found = Gradients()
    d_hidden = d_routing = None
    if len(tiles) > 1 and needs.hidden_states:
        d_hidden = torch.empty_like(inputs.hidden_states)
    if len(tiles) > 1 and needs.routing_weights:
        d_routing = torch.empty_like(inputs.routing_weights, memory_format=torch.contiguous_format)
    for tile in tiles:
        shared.last = tile is tiles[-1]
        part = slice(tile.first, tile.last)
        found = stages.backward(
            layer, _cut(inputs, tile), tile.rows, tile.kept, shared, d_out[part], needs, found
        )
        if d_hidden is not None:
            d_hidden[part] = found.hidden_states
        if d_routing is not None:
            d_routing[part] = found.routing_weights
        if len(tiles) > 1:  # the tile's own are copied, only the factors' go on
            found = found._replace(hidden_states=d_hidden, routing_weights=d_routing)
    return found


def _cut(inputs: TileInputs, tile: Tile) -> TileInputs:
    part = slice(tile.first, tile.last)
    return TileInputs(inputs.hidden_states[part], inputs.routing_weights[part])
