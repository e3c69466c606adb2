"""Our own flash kernels as an engine of attention with sinks: consumer cards, AMD, and CPU tests.

Unlike the stock kernels these take the runs of a row as two integers per token, so a packed batch
needs neither ``cu_seqlens`` nor its size on the host, and they fold the sink into the online
softmax. fp32 inputs are multiplied in fp32, which is what lets the interpreter's results be held
against float64.

B rows, S tokens of a row, Hq query heads, Hkv key-value heads, G = Hq / Hkv, D head size. Keys may
be more than queries; query i then stands at key ``keys - queries + i``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gptoss_kernels.attention.interface import AttentionRule
from gptoss_kernels.attention.sinks import row_sums
from gptoss_kernels.backend import launch, require_triton

HEAD_SIZES = (16, 32, 64)


@dataclass(frozen=True)
class Tile:
    """Block sizes and launch options of one kernel: M queries by N keys.

    Attributes:
        queries: M, a power of two from 16.
        keys: N, a power of two from 16.
        warps: Warps of a program.
        stages: Loop iterations that are loaded ahead.
    """

    queries: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class AttentionTiles:
    """The tiles of the three kernels."""

    forward: Tile
    key_value: Tile
    query: Tile


def choose_attention_tiles(dtype: torch.dtype, shared_memory_kib: int) -> AttentionTiles:
    """Return tiles that fit: no register spills and the shared memory of the card.

    Args:
        dtype: Of query, key and value.
        shared_memory_kib: What one program may use: 64 on gfx942, 99 on sm_86, sm_89 and sm_120,
            163 on sm_80, 227 on sm_90 and sm_100.

    Returns:
        The tiles; compiled and inspected for all of these but sm_86 and sm_89, not yet timed. A
        loop that loads two iterations ahead waits for the older copy only; one that loads one
        ahead starts its copy after its products and waits for it at once.
    """
    if dtype == torch.float32:  # exact products run on the ordinary cores: for tests, not for speed
        small = Tile(32, 32, 4, 1)
        return AttentionTiles(small, small, small)
    # From sm_90 on the accumulators do not compete with the addresses for registers.
    rows = 64 if shared_memory_kib >= 200 else 32
    if shared_memory_kib <= 64:  # gfx942, which copies through registers
        return AttentionTiles(Tile(128, 64, 8, 2), Tile(rows, 128, 8, 1), Tile(64, 64, 4, 2))
    return AttentionTiles(Tile(128, 64, 8, 3), Tile(rows, 128, 8, 3), Tile(64, 64, 4, 3))


class TritonEngine:
    """Forward and backward in Triton; deterministic, no host synchronisation."""

    def __init__(self, tiles: AttentionTiles | None = None) -> None:
        """Use ``tiles``; ``None`` chooses by shape, dtype and card."""
        self.tiles = tiles

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        """See ``AttentionEngine``."""
        from gptoss_kernels._triton._attention import _attention_forward_kernel

        _require_support(query, key, value)
        query, key, value = (_unit_stride(t) for t in (query, key, value))
        batch, heads, length, size = query.shape
        tile = self._tiles(query).forward
        out = torch.empty(batch, length, heads, size, dtype=query.dtype, device=query.device)
        lse = torch.empty(batch, heads, length, dtype=torch.float32, device=query.device)
        if length == 0 or batch == 0:
            return out, lse
        launch(
            _attention_forward_kernel,
            (-(-length // tile.queries) * batch * heads,),
            query,
            key,
            value,
            sinks,
            rule.documents.first_key,
            out,
            lse,
            *query.stride()[:3],
            *key.stride()[:3],
            *value.stride()[:3],
            length,
            key.shape[2],
            heads,
            batch * heads,
            rule.window or 0,
            rule.scaling * math.log2(math.e),
            GROUP=heads // key.shape[1],
            HAS_WINDOW=rule.window is not None,
            HEAD_SIZE=size,
            BLOCK_M=tile.queries,
            BLOCK_N=tile.keys,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return out, lse

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        rule: AttentionRule,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See ``AttentionEngine``."""
        query, key, value, grad_out = (_unit_stride(t) for t in (query, key, value, grad_out))
        if query.numel() == 0:
            return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        delta = self.row_sums(grad_out, out)
        grad_key, grad_value = self._key_value(grad_out, query, key, value, lse, delta, rule)
        grad_query = self._query(grad_out, query, key, value, lse, delta, rule)
        return grad_query, grad_key, grad_value

    def row_sums(self, grad_out: Tensor, out: Tensor) -> Tensor:
        """See ``AttentionEngine``."""
        return row_sums(grad_out, out, backend="triton")

    def _key_value(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lse: Tensor,
        delta: Tensor,
        rule: AttentionRule,
    ) -> tuple[Tensor, Tensor]:
        from gptoss_kernels._triton._attention_backward import _attention_key_value_kernel

        batch, heads, length, size = query.shape
        groups, key_length = key.shape[1:3]
        tile = self._tiles(query).key_value
        grad_key = key.new_empty(batch, key_length, groups, size)
        grad_value = torch.empty_like(grad_key)
        blocks = -(-key_length // tile.keys)
        launch(
            _attention_key_value_kernel,
            (blocks * batch * groups,),
            query,
            key,
            value,
            grad_out,
            lse,
            delta,
            rule.documents.first_key,
            rule.documents.last_query,
            grad_key,
            grad_value,
            *query.stride()[:3],
            *key.stride()[:3],
            *value.stride()[:3],
            *grad_out.stride()[:3],
            length,
            key_length,
            heads,
            rule.window or 0,
            rule.scaling,
            rule.scaling * math.log2(math.e),
            batch * groups,
            GROUP=heads // groups,
            HAS_WINDOW=rule.window is not None,
            HEAD_SIZE=size,
            BLOCK_M=tile.queries,
            BLOCK_N=tile.keys,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return grad_key.transpose(1, 2), grad_value.transpose(1, 2)

    def _query(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lse: Tensor,
        delta: Tensor,
        rule: AttentionRule,
    ) -> Tensor:
        from gptoss_kernels._triton._attention_backward import _attention_query_kernel

        batch, heads, length, size = query.shape
        tile = self._tiles(query).query
        grad_query = query.new_empty(batch, length, heads, size)
        blocks = -(-length // tile.queries)
        launch(
            _attention_query_kernel,
            (blocks * batch * heads,),
            query,
            key,
            value,
            grad_out,
            lse,
            delta,
            rule.documents.first_key,
            grad_query,
            *query.stride()[:3],
            *key.stride()[:3],
            *value.stride()[:3],
            *grad_out.stride()[:3],
            length,
            key.shape[2],
            heads,
            batch * heads,
            rule.window or 0,
            rule.scaling,
            rule.scaling * math.log2(math.e),
            GROUP=heads // key.shape[1],
            HAS_WINDOW=rule.window is not None,
            HEAD_SIZE=size,
            BLOCK_M=tile.queries,
            BLOCK_N=tile.keys,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        return grad_query.transpose(1, 2)

    def _tiles(self, query: Tensor) -> AttentionTiles:
        if self.tiles is not None:
            return self.tiles
        kib = 227
        if query.device.type == "cuda":
            properties = torch.cuda.get_device_properties(query.device)
            # AMD's cards have one amount, NVIDIA's a larger one on request.
            most = getattr(properties, "shared_memory_per_block_optin", None)
            kib = (most or properties.shared_memory_per_block) // 1024
        return choose_attention_tiles(query.dtype, kib)


def _require_support(query: Tensor, key: Tensor, value: Tensor) -> None:
    require_triton("attention", query, key, value)
    if query.shape[-1] not in HEAD_SIZES:
        raise ValueError(
            f"the Triton attention needs a head size of {HEAD_SIZES}, got {query.shape[-1]}; the "
            f"eager engine takes any"
        )


def _unit_stride(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
