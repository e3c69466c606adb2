"""Launching the persistent grouped product.

One kernel serves every large product of the layer: as many programs as the GPU holds at a time walk
over the tiles of all experts, so an expert with few rows does not leave the GPU idle and an empty
one costs nothing. Rejected: one launch per expert, which needs the row counts on the host.
"""

# Legend: M rows, E experts, N columns out, K columns in, R rank.

from __future__ import annotations

from typing import Any

from torch import Tensor

from gptoss_kernels.backend import launch, on_device
from gptoss_kernels.lora import LowRankTerm
from gptoss_kernels.mxfp4 import MXFP4_BLOCK, Mxfp4Weight
from gptoss_kernels.routing import TileMap, make_tile_map
from gptoss_kernels.tiles import Tiles, gpu_of


class TileMaps:
    """The tile maps of one routing: products with the same tile height share one."""

    def __init__(self, expert_offsets: Tensor, num_rows: int) -> None:
        """Hold the offsets; maps are made when asked for."""
        self._expert_offsets, self._num_rows = expert_offsets, num_rows
        self._maps: dict[tuple[int, int, int], TileMap] = {}

    def get(self, block_m: int, first: int, last: int) -> TileMap:
        """Return the map of experts ``first`` to ``last - 1`` for tiles of ``block_m`` rows."""
        key = (block_m, first, last)
        if key not in self._maps:
            offsets = self._expert_offsets[first : last + 1]
            self._maps[key] = make_tile_map(offsets, block_m, self._num_rows)
        return self._maps[key]


def launch_product(
    rows: Tensor,
    source: Tensor | Mxfp4Weight | None,
    tile_map: TileMap,
    tiles: Tiles,
    out: Tensor,
    *,
    indices: Tensor | None = None,
    bias: Tensor | None = None,
    low_rank: LowRankTerm | None = None,
    activation: Tensor | None = None,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> None:
    """Write ``rows W_e^T + bias_e + s low B_e^T`` into ``out``, and its activation if asked for.

    Args:
        rows: ``[M, K]``, or ``[T, K]`` with ``indices``; with no source ``[M, N]``, the product
            itself, to which the rest is added.
        source: ``[E, N, K]``, any strides; or MXFP4 with ``(E, N, K)``; or None.
        tile_map: Of these experts, for ``tiles.block_m``.
        tiles: How to cut.
        out: ``[M, N]``, columns contiguous; may be ``rows`` itself when there is no source. Wider
            than N, its other columns, up to the next multiple of 16, become zero: a row that ends
            on 32 bytes is stored in wide pieces, whatever the rank.
        indices: ``[M]`` int32 or None.
        bias: ``[E, N]`` contiguous or None.
        low_rank: A rank-r term or None; its rows have contiguous columns.
        activation: ``[M, N/2]`` contiguous or None; with it ``out`` must be contiguous.
        alpha: Slope of the activation's sigmoid.
        limit: Bound of its clamps.
    """
    from gptoss_kernels._triton import _grouped_matmul as device

    matrix, strides, scales = None, (0, 0, 0), None
    columns, inner, kind = out.shape[1], MXFP4_BLOCK, device.GIVEN
    if isinstance(source, Mxfp4Weight):
        matrix, scales, kind = source.blocks, source.scales, device.PACKED
        columns, inner = source.shape[1:]
    elif source is not None:
        matrix, strides, kind = source, source.stride(), device.DENSE
        columns, inner = source.shape[1:]
    low_rows, factor, rank, factor_strides, scaling = None, None, 0, (0, 0, 0), 0.0
    if low_rank is not None:
        low_rows, factor, scaling = low_rank.rows, low_rank.factor, low_rank.scaling
        rank, factor_strides = low_rows.shape[1], factor.stride()
    matrix_desc, rows_desc, turned = _descriptors(rows, source, indices, tiles)
    with on_device(rows):
        launch(
            device._grouped_matmul_kernel,
            (gpu_of(rows.device).processors * tiles.programs,),
            rows,
            rows.stride(0),
            indices,
            matrix,
            *strides,
            scales,
            matrix_desc,
            rows_desc,
            bias,
            low_rows,
            0 if low_rows is None else low_rows.stride(0),
            factor,
            *factor_strides,
            scaling,
            out,
            out.stride(0),
            activation,
            tile_map.expert,
            tile_map.start,
            tile_map.stop,
            tile_map.count,
            N=columns,
            K=inner,
            R=rank,
            R_PAD=max(16, 1 << max(rank - 1, 0).bit_length()),
            BIAS=bias is not None,
            GATHER=indices is not None,
            SOURCE=kind.value,
            TMA=matrix_desc is not None,
            TURNED=turned,
            EPILOGUE="store" if activation is None else "swiglu",
            STORED=out.shape[1],
            ALPHA=alpha,
            LIMIT=limit,
            BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n,
            BLOCK_K=tiles.block_k,
            GROUP=tiles.group,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )


def _descriptors(
    rows: Tensor, source: Tensor | Mxfp4Weight | None, indices: Tensor | None, tiles: Tiles
) -> tuple[Any, Any, bool]:
    """Return TMA descriptors of matrix and rows, and whether the matrix has N contiguous.

    The matrix is described flat, its experts one below the other. None where the tiles do not ask
    for TMA or it cannot copy: experts with gaps, rows that do not start at 16 bytes, gathered rows.
    """
    if not tiles.tma or not isinstance(source, Tensor):
        return None, None, False
    for stored, block, turned in (
        (source, (tiles.block_n, tiles.block_k), False),
        (source.mT, (tiles.block_k, tiles.block_n), True),
    ):
        if stored.is_contiguous():
            matrix = _describe(stored.flatten(0, 1), block)
            if matrix is None or indices is not None:
                return matrix, None, turned
            return matrix, _describe(rows, (tiles.block_m, tiles.block_k)), turned
    return None, None, False


def _describe(matrix: Tensor, block: tuple[int, int]) -> Any:
    """Return a TMA descriptor of ``[rows, columns]``, None where its alignment forbids one."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    bytes_apart = matrix.stride(0) * matrix.element_size()
    if matrix.stride(1) != 1 or bytes_apart % 16 or matrix.data_ptr() % 16:
        return None
    return TensorDescriptor.from_tensor(matrix, list(block))
