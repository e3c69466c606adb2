"""The products of one expert layer on Triton: by which engine, on which weights, with which tiles.

A pass is one direction of one tile of tokens. Its large products go to the engine that suits their
shape, on weights decoded just before; its skinny ones, with the LoRA factors, always to our kernel.
"""

# Legend: M rows, E experts, N columns out, K columns in, R rank.

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gptoss_kernels.backend import say_once
from gptoss_kernels.experts.decode import ExpertGroup, expert_groups, is_turned
from gptoss_kernels.experts.engines import Engine, engine_for
from gptoss_kernels.experts.grouped_mm import grouped_mm
from gptoss_kernels.experts.projection import ExpertMatrices
from gptoss_kernels.experts.quack import ProductForm, quack_projection
from gptoss_kernels.experts.records import ExpertLayer, Shared
from gptoss_kernels.lora import LowRankTerm
from gptoss_kernels.mxfp4 import Mxfp4Weight
from gptoss_kernels.persistent import TileMaps, launch_product
from gptoss_kernels.routing import Routing
from gptoss_kernels.tiles import Product, Tiles, choose_tiles, gpu_of


@dataclass
class Pass:
    """One direction of one tile: the layer, its routing, the tile maps made so far, what is shared.

    Where ``shared`` keeps decoded matrices, a projection's stay from its first product to its last.
    """

    layer: ExpertLayer
    routing: Routing
    maps: TileMaps
    dtype: torch.dtype
    shared: Shared


def grouped_projection(
    this: Pass,
    rows: Tensor,
    matrices: ExpertMatrices,
    *,
    indices: Tensor | None = None,
    bias: Tensor | None = None,
    low_rank: LowRankTerm | None = None,
    activation: Tensor | None = None,
) -> Tensor:
    """Return a projection's product ``[M, N]`` by the engine that suits it."""
    layer = this.layer
    form = ProductForm(
        gathered=indices is not None,
        biased=bias is not None,
        added=low_rank is not None,
        activated=activation is not None,
        turned=is_turned(matrices),
    )
    engine = engine_for(
        layer.engine,
        matrices,
        form,
        rows=this.shared.rows,
        device=rows.device,
        scratch_bytes=layer.scratch_bytes,
    )
    if engine != "quack":
        return _own_product(this, engine, rows, matrices, indices, bias, low_rank, activation)
    return quack_projection(
        rows,
        matrices,
        this.maps,
        this.routing.expert_offsets,
        indices=indices,
        bias=bias,
        low_rank=low_rank,
        activation=activation,
        alpha=layer.alpha,
        limit=layer.limit,
    )


def _own_product(
    this: Pass,
    engine: Engine,
    rows: Tensor,
    matrices: ExpertMatrices,
    indices: Tensor | None,
    bias: Tensor | None,
    low_rank: LowRankTerm | None,
    activation: Tensor | None,
) -> Tensor:
    """Return the product by our kernel, or by torch's and our kernel after it."""
    layer, gpu = this.layer, gpu_of(rows.device)
    columns, inner = matrices.shape
    num_rows = this.routing.num_rows
    product: Product = "store" if activation is None else "swiglu"
    if engine == "packed":
        product = "packed" if activation is None else "packed_swiglu"
    elif engine == "grouped_mm":
        product = "given"
    tiles = choose_tiles(
        product,
        n=columns,
        k=inner,
        dtype=this.dtype,
        gpu=gpu,
        rank=0 if low_rank is None else low_rank.rows.shape[1],
        rows_per_expert=this.shared.rows // matrices.num_experts,
        turned=engine == "fused" and is_turned(matrices),
        bias=bias is not None,
    )
    _say_choice(product, columns, inner, gpu.name, engine, tiles)

    def launch(
        first: int, last: int, source: Tensor | Mxfp4Weight | None, given: Tensor, out: Tensor
    ) -> None:
        part = low_rank
        if part is not None:
            part = LowRankTerm(part.rows, part.factor[first:last], part.scaling)
        launch_product(
            given,
            source,
            this.maps.get(tiles.block_m, first, last),
            tiles,
            out,
            indices=None if source is None else indices,
            bias=None if bias is None else bias[first:last],
            low_rank=part,
            activation=activation,
            alpha=layer.alpha,
            limit=layer.limit,
        )

    if engine == "grouped_mm":
        gathered = rows if indices is None else rows[indices]
        (everything,) = _decoded(this, matrices, scratch_bytes=2**63)
        out = grouped_mm(gathered, everything.matrices, this.routing.expert_offsets)
        del gathered
        if bias is not None or low_rank is not None or activation is not None:
            launch(0, matrices.num_experts, None, out, out)
        return out
    out = torch.empty((num_rows, columns), dtype=this.dtype, device=rows.device)
    if engine == "packed":
        weight = matrices.projection.weight
        assert isinstance(weight, Mxfp4Weight)  # or the engine would be another
        launch(0, matrices.num_experts, weight, rows, out)
        return out
    for group in _decoded(this, matrices, layer.scratch_bytes):
        launch(group.first, group.last, group.matrices, rows, out)
    return out


def _decoded(this: Pass, matrices: ExpertMatrices, scratch_bytes: int) -> Iterator[ExpertGroup]:
    """Yield ``expert_groups``, or what was decoded for a product before."""
    shared = this.shared
    if shared.decoded is None:
        yield from expert_groups(matrices, scratch_bytes)
        return
    name = "gate_up" if matrices.projection is this.layer.gate_up else "down"
    stack = shared.decoded.pop(name, None)
    if stack is None:
        (group,) = expert_groups(replace(matrices, transposed=False), scratch_bytes)
        stack = group.matrices
    # In a backward pass what was multiplied forwards again is still to be multiplied backwards.
    if not shared.last or (shared.backward and not matrices.transposed):
        shared.decoded[name] = stack
    yield ExpertGroup(0, matrices.num_experts, stack.mT if matrices.transposed else stack)


@functools.cache
def _say_choice(
    product: Product, columns: int, inner: int, gpu: str, engine: Engine, tiles: Tiles
) -> None:
    say_once(f"expert product {product} [{columns}, {inner}] on {gpu}: {engine}, {tiles}")


def both_fit(layer: ExpertLayer, dtype: torch.dtype) -> bool:
    """Return whether the bound of the scratch has room for both projections at once."""
    both = sum(math.prod(p.logical_shape) for p in (layer.gate_up, layer.down))
    return both * dtype.itemsize <= layer.scratch_bytes


def skinny(
    this: Pass, rows: Tensor, factor: Tensor | None, indices: Tensor | None = None
) -> Tensor:
    """Return ``rows factor_e^T``, ``[M, R]``, for a factor ``[E, R, K]``."""
    assert factor is not None  # callers ask only with a pair
    factor = laid_out(factor, this.dtype)
    num_experts, rank, inner = factor.shape
    gpu = gpu_of(rows.device)
    tiles = choose_tiles("skinny", n=rank, k=inner, dtype=this.dtype, gpu=gpu)
    # Rows of a multiple of 16 columns, whatever the rank: wide stores here and wide loads later.
    shape = (this.routing.num_rows, -(-rank // 16) * 16)
    out = torch.empty(shape, dtype=this.dtype, device=rows.device)
    tile_map = this.maps.get(tiles.block_m, 0, num_experts)
    launch_product(rows, factor, tile_map, tiles, out, indices=indices)
    return out[:, :rank]


def laid_out(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``factor`` contiguous in ``dtype``, by one kernel at most."""
    if factor.dtype == dtype:
        return factor.contiguous()
    return factor.to(dtype, memory_format=torch.contiguous_format)


def laid_out_in_16s(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``factor [E, N, R]`` in ``dtype``, half-precision rows at multiples of 16 elements.

    With R = 8 the compiler would know of no alignment and load them value by value; fp32 rows come
    without a copy, in products that do not run on tensor cores anyway.
    """
    rank = factor.shape[-1]
    if rank % 16 == 0 or dtype == torch.float32:
        return laid_out(factor, dtype)
    shape = (*factor.shape[:-1], -(-rank // 16) * 16)
    rows = torch.empty(shape, dtype=dtype, device=factor.device)[..., :rank]
    return rows.copy_(factor)
