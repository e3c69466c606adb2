"""The expert layer in plain torch: the engine for CPUs and the yardstick for the Triton one.

On a CPU one expert at a time, each weight decoded just before its product and dropped after it;
on a GPU that torch's grouped product serves, all experts at once.
"""

# Legend: T tokens, K experts per token, M rows, H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from gptoss_kernels.combine import combine_reference
from gptoss_kernels.experts.grouped_matmul import grouped_matmul_reference
from gptoss_kernels.experts.grouped_mm import grouped_matmul_at_once, grouped_mm_obstacle
from gptoss_kernels.experts.projection import ExpertMatrices, ExpertProjection
from gptoss_kernels.experts.records import (
    ExpertLayer,
    FactorGradients,
    Gradients,
    KeptRows,
    Needs,
    Shared,
    SortedRows,
    TileInputs,
)
from gptoss_kernels.lora import LowRankTerm, add_ragged_outer_reference
from gptoss_kernels.routing import Routing, route_reference
from gptoss_kernels.swiglu import swiglu_backward_reference, swiglu_reference


def sort_rows(layer: ExpertLayer, router_indices: Tensor) -> SortedRows:
    """Return the rows of ``router_indices [T, K]``, sorted by expert."""
    return SortedRows(route_reference(router_indices, layer.gate_up.logical_shape[0]), None)


def shared_by_tiles(
    layer: ExpertLayer, rows: int, dtype: torch.dtype, *, backward: bool, reread: bool
) -> Shared:
    """Return what the tiles of a pass share: nothing, each product decodes for itself."""
    return Shared(rows, backward)


def forward(
    layer: ExpertLayer, inputs: TileInputs, rows: SortedRows, shared: Shared
) -> tuple[Tensor, KeptRows]:
    """Return the tile's output ``[T, H]`` and what ``backward`` would have to compute again."""
    routing, merged = rows.routing, layer.merge_aware
    gate_up_lora, gate_up = _project(
        layer.gate_up, inputs.hidden_states, routing, merged, routing.token_indices
    )
    activation = swiglu_reference(gate_up, alpha=layer.alpha, limit=layer.limit)
    if not layer.keeps_gate_up:
        gate_up = None  # twice the activation, and the product of down_proj comes now
    down_lora, out_rows = _project(layer.down, activation, routing, merged)
    out = combine_reference(out_rows, routing.row_indices, inputs.routing_weights)
    return out, KeptRows(gate_up, gate_up_lora, down_lora)


def backward(
    layer: ExpertLayer,
    inputs: TileInputs,
    rows: SortedRows,
    kept: KeptRows,
    shared: Shared,
    d_out: Tensor,
    needs: Needs,
    sums: Gradients,
) -> Gradients:
    """Return the gradients that ``needs`` asks for, by the formulas of ``experts``.

    Those of the factors are added to ``sums``, where it has any.
    """
    routing, merged = rows.routing, layer.merge_aware
    tokens = routing.token_indices
    gate_up_rows, gate_up_lora = kept.gate_up, kept.gate_up_lora
    if gate_up_rows is None:
        x = inputs.hidden_states
        made_again, gate_up_rows = _project(layer.gate_up, x, routing, merged, tokens)
        gate_up_lora = made_again if gate_up_lora is None else gate_up_lora
    activation = swiglu_reference(gate_up_rows, alpha=layer.alpha, limit=layer.limit)
    gates = inputs.routing_weights.flatten()[routing.slot_indices].unsqueeze(-1)
    d_down_lora_rows = _lora_rows_back(layer.down, d_out, routing, tokens)
    d_activation = _project_back(layer.down, d_out, d_down_lora_rows, routing, merged, tokens)
    d_routing = None
    if needs.routing_weights:
        d_routing = _d_routing_weights(layer, inputs, routing, d_out, activation, d_activation)
    down = None
    if needs.down:
        lora_rows = kept.down_lora
        if lora_rows is None:
            lora_rows = _lora_rows(layer.down, activation, routing)
        down = _d_factors(
            layer.down,
            rows=_scale_rows(activation, gates),
            lora_rows=_scale_rows(lora_rows, gates),
            d_rows=d_out,
            d_lora_rows=d_down_lora_rows,
            routing=routing,
            d_rows_indices=tokens,
            sums=sums.down,
        )
    if not (needs.hidden_states or needs.gate_up):
        return Gradients(None, d_routing, None, down)
    d_gate_up_rows = swiglu_backward_reference(
        gate_up_rows, _scale_rows(d_activation, gates), alpha=layer.alpha, limit=layer.limit
    )
    d_gate_up_lora_rows = _lora_rows_back(layer.gate_up, d_gate_up_rows, routing)
    d_hidden = None
    if needs.hidden_states:
        d_hidden_rows = _project_back(
            layer.gate_up, d_gate_up_rows, d_gate_up_lora_rows, routing, merged
        )
        d_hidden = combine_reference(d_hidden_rows, routing.row_indices)
    gate_up = None
    if needs.gate_up:
        if gate_up_lora is None:
            gate_up_lora = _lora_rows(layer.gate_up, inputs.hidden_states, routing, tokens)
        gate_up = _d_factors(
            layer.gate_up,
            rows=inputs.hidden_states,
            lora_rows=gate_up_lora,
            d_rows=d_gate_up_rows,
            d_lora_rows=d_gate_up_lora_rows,
            routing=routing,
            rows_indices=tokens,
            sums=sums.gate_up,
        )
    return Gradients(d_hidden, d_routing, gate_up, down)


def _project(
    projection: ExpertProjection,
    rows: Tensor,
    routing: Routing,
    merged: bool,
    indices: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Return ``rows A^T`` (None where the pair is absent or merged) and the projected rows."""
    low_rank = None
    if projection.lora_B is not None and not merged:
        lora_rows = _lora_rows(projection, rows, routing, indices)
        low_rank = LowRankTerm(lora_rows, projection.lora_B.to(rows.dtype), projection.scaling)
    projected = _large_product(
        rows,
        ExpertMatrices(projection, rows.dtype, merged=merged),
        routing,
        indices,
        bias=projection.bias,
        low_rank=low_rank,
    )
    return None if low_rank is None else low_rank.rows, projected


def _lora_rows(
    projection: ExpertProjection, rows: Tensor, routing: Routing, indices: Tensor | None = None
) -> Tensor:
    """Return ``rows A^T``, ``[M, R]``."""
    assert projection.lora_A is not None  # asked for only with a pair
    factor = projection.lora_A.to(rows.dtype)
    return grouped_matmul_reference(rows, factor, routing.expert_offsets, token_indices=indices)


def _lora_rows_back(
    projection: ExpertProjection, d_rows: Tensor, routing: Routing, indices: Tensor | None = None
) -> Tensor | None:
    """Return ``d_rows B``, ``[M, R]``; None without a LoRA pair."""
    if projection.lora_B is None:
        return None
    factor = projection.lora_B.mT.to(d_rows.dtype)
    return grouped_matmul_reference(d_rows, factor, routing.expert_offsets, token_indices=indices)


def _project_back(
    projection: ExpertProjection,
    d_rows: Tensor,
    d_lora_rows: Tensor | None,
    routing: Routing,
    merged: bool,
    indices: Tensor | None = None,
) -> Tensor:
    """Return the gradient of the projection's input rows."""
    low_rank = None
    # Merged, the pair is inside the matrix already.
    if projection.lora_A is not None and d_lora_rows is not None and not merged:
        factor = projection.lora_A.mT.to(d_rows.dtype)
        low_rank = LowRankTerm(d_lora_rows, factor, projection.scaling)
    matrices = ExpertMatrices(projection, d_rows.dtype, transposed=True, merged=merged)
    return _large_product(d_rows, matrices, routing, indices, low_rank=low_rank)


def _large_product(
    rows: Tensor,
    matrices: ExpertMatrices,
    routing: Routing,
    indices: Tensor | None,
    *,
    bias: Tensor | None = None,
    low_rank: LowRankTerm | None = None,
) -> Tensor:
    """Return a projection's product: on a GPU at once where torch can, else expert by expert.

    At once needs all experts dense for the moment of the product; a CPU has no use for that, nor
    has a decoding step, whose few rows leave most experts without one.
    """
    offsets = routing.expert_offsets
    options = {"token_indices": indices, "bias": bias, "low_rank": low_rank}
    few = routing.num_rows < matrices.num_experts
    if rows.is_cuda and not few and grouped_mm_obstacle(rows.device, rows.dtype) is None:
        return grouped_matmul_at_once(rows, matrices.stack(), offsets, **options)
    return grouped_matmul_reference(rows, matrices, offsets, **options)


def _d_routing_weights(
    layer: ExpertLayer,
    inputs: TileInputs,
    routing: Routing,
    d_out: Tensor,
    activation: Tensor,
    d_activation: Tensor,
) -> Tensor:
    """Return ``dg = <dHu, H> + <dO, b_d>`` for every (token, choice), zero where absent."""
    wide = torch.promote_types(activation.dtype, torch.float32)
    row_gradients = (activation.to(wide) * d_activation.to(wide)).sum(-1)
    if layer.down.bias is not None:
        # [T, E]: the product of every token with every bias is one small matrix product.
        against_bias = d_out.to(wide) @ layer.down.bias.to(wide).mT
        experts_of_rows = torch.bucketize(
            torch.arange(row_gradients.shape[0], device=d_out.device, dtype=torch.int32),
            routing.expert_offsets[1:],
            right=True,
        ).clamp(max=against_bias.shape[1] - 1)
        row_gradients += against_bias[routing.token_indices, experts_of_rows]
    present = routing.row_indices >= 0
    if row_gradients.numel() == 0:
        return torch.zeros_like(inputs.routing_weights)
    picked = row_gradients[routing.row_indices.clamp(min=0)]
    return torch.where(present, picked, 0).to(inputs.routing_weights.dtype)


def _d_factors(
    projection: ExpertProjection,
    *,
    rows: Tensor,
    lora_rows: Tensor,
    d_rows: Tensor,
    d_lora_rows: Tensor | None,
    routing: Routing,
    rows_indices: Tensor | None = None,
    d_rows_indices: Tensor | None = None,
    sums: FactorGradients | None,
) -> FactorGradients:
    """Return ``(s d_lora_rows^T rows, s d_rows^T lora_rows)`` per expert, added to ``sums``."""
    assert d_lora_rows is not None  # asked for only with a pair
    outer = partial(
        add_ragged_outer_reference,
        expert_offsets=routing.expert_offsets,
        scaling=projection.scaling,
    )
    d_A, d_B = (None, None) if sums is None else sums
    return FactorGradients(
        outer(d_A, d_lora_rows, rows, right_indices=rows_indices),
        outer(d_B, d_rows, lora_rows, left_indices=d_rows_indices),
    )


def _scale_rows(rows: Tensor, gates: Tensor) -> Tensor:
    """Return ``gates * rows`` in the dtype of ``rows``."""
    return (rows * gates).to(rows.dtype)
