"""Device code of routing: a stable counting sort by expert, and the map from tiles to experts."""

# Legend: M rows, E experts; E_PAD a power of two of at least E + 1 (one bin for absent experts).

import triton
import triton.language as tl


@triton.jit
def _bins(router_indices_ptr, count, block, E: tl.constexpr, BLOCK: tl.constexpr):
    """Return the slots of a block, which of them exist, and their bins (E for absent experts)."""
    slots = block * BLOCK + tl.arange(0, BLOCK)
    exists = slots < count
    bins = tl.minimum(tl.load(router_indices_ptr + slots, exists, 0), E)
    return slots, exists, bins.to(tl.int32)


@triton.jit
def _routing_count_kernel(
    router_indices_ptr,
    counts_ptr,
    count,
    blocks,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``counts[bin, block]``: how many slots of a block want an expert."""
    block = tl.program_id(0)
    _, exists, bins = _bins(router_indices_ptr, count, block, E, BLOCK)
    every_bin = tl.arange(0, E_PAD)
    hits = (bins[:, None] == every_bin[None, :]) & exists[:, None]
    counts = tl.sum(hits.to(tl.int32), axis=0)
    tl.store(counts_ptr + every_bin * blocks + block, counts, every_bin <= E)


@triton.jit
def _routing_scan_kernel(counts_ptr, totals_ptr, blocks, BLOCK: tl.constexpr):
    """One expert: turn its counts per block into an exclusive running sum; keep the total."""
    bin_index = tl.program_id(0)
    running = 0
    for start in range(0, blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        ptrs = counts_ptr + bin_index * blocks + block
        counts = tl.load(ptrs, block < blocks, 0)
        tl.store(ptrs, running + tl.cumsum(counts, axis=0) - counts, block < blocks)
        running += tl.sum(counts, axis=0)
    tl.store(totals_ptr + bin_index, running)


@triton.jit
def _routing_scatter_kernel(
    router_indices_ptr,
    counts_ptr,
    totals_ptr,
    expert_offsets_ptr,
    token_indices_ptr,
    slot_indices_ptr,
    row_indices_ptr,
    count,
    blocks,
    K: tl.constexpr,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Give every slot its row: rows of lower experts, of earlier blocks, of earlier slots."""
    block = tl.program_id(0)
    every_bin = tl.arange(0, E_PAD)
    totals = tl.load(totals_ptr + every_bin, every_bin <= E, 0)
    starts = tl.cumsum(totals, axis=0) - totals
    if block == 0:
        tl.store(expert_offsets_ptr + every_bin, starts, every_bin <= E)
    slots, exists, bins = _bins(router_indices_ptr, count, block, E, BLOCK)
    before = tl.load(counts_ptr + every_bin * blocks + block, every_bin <= E, 0)
    hits = ((bins[:, None] == every_bin[None, :]) & exists[:, None]).to(tl.int32)
    place = tl.cumsum(hits, axis=0) - 1 + (starts + before)[None, :]
    rows = tl.sum(hits * place, axis=1)
    tl.store(token_indices_ptr + rows, slots // K, exists)
    tl.store(slot_indices_ptr + rows, slots, exists)
    tl.store(row_indices_ptr + slots, tl.where(bins < E, rows, -1), exists)


@triton.jit
def _tile_map_kernel(
    expert_offsets_ptr,
    tile_expert_ptr,
    tile_start_ptr,
    tile_stop_ptr,
    tile_count_ptr,
    bound,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Tile t covers rows ``start : stop`` of its expert, at most BLOCK_M of them."""
    every_expert = tl.arange(0, E_PAD)
    held = every_expert < E
    starts = tl.load(expert_offsets_ptr + every_expert, held, 0)
    stops = tl.load(expert_offsets_ptr + 1 + every_expert, held, 0)
    tiles = (stops - starts + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(tiles, axis=0)
    total = tl.sum(tiles, axis=0)
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.sum(((ends[None, :] <= tile[:, None]) & held[None, :]).to(tl.int32), axis=1)
    mine = (every_expert[None, :] == expert[:, None]).to(tl.int32)
    first = tl.sum(mine * (ends - tiles)[None, :], axis=1)
    start = tl.sum(mine * starts[None, :], axis=1) + (tile - first) * BLOCK_M
    used = tile < tl.minimum(total, bound)
    tl.store(tile_expert_ptr + tile, expert, used)
    tl.store(tile_start_ptr + tile, start, used)
    tl.store(tile_stop_ptr + tile, tl.sum(mine * stops[None, :], axis=1), used)
    if tl.program_id(0) == 0:
        tl.store(tile_count_ptr, total)
