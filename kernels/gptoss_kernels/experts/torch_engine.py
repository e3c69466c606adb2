"""The expert layer in plain torch: the engine for CPUs and the yardstick for the Triton one.

On a CPU one expert at a time, each weight decoded just before its product and dropped after it;
on a GPU that torch's grouped product serves, all experts at once.
"""

# Legend: T tokens, K experts per token, M rows, H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

import torch
from torch import Tensor

from gptoss_kernels.combine import combine_reference
from gptoss_kernels.experts.grouped_matmul import grouped_matmul_reference
from gptoss_kernels.experts.grouped_mm import grouped_matmul_at_once, grouped_mm_obstacle
from gptoss_kernels.experts.projection import ExpertMatrices, ExpertProjection
from gptoss_kernels.experts.records import ExpertLayer, Gradients, Needs, Saved
from gptoss_kernels.lora import LowRankTerm, ragged_outer_reference
from gptoss_kernels.routing import Routing, route_reference
from gptoss_kernels.swiglu import swiglu_backward_reference, swiglu_reference


def forward(
    layer: ExpertLayer, hidden_states: Tensor, router_indices: Tensor, routing_weights: Tensor
) -> tuple[Tensor, Saved, None]:
    """Return the layer's output ``[T, H]`` and what ``backward`` needs."""
    kept = layer.kept
    if kept is not None and kept.of is router_indices and kept.routing is not None:
        routing = kept.routing
    else:
        routing = route_reference(router_indices, layer.gate_up.logical_shape[0])
        if kept is not None:
            kept.of, kept.routing = router_indices, routing
    merged = layer.merge_aware
    gate_up_lora_rows, gate_up_rows = _project(
        layer.gate_up, hidden_states, routing, merged, routing.token_indices
    )
    activation = swiglu_reference(gate_up_rows, alpha=layer.alpha, limit=layer.limit)
    down_lora_rows, rows = _project(layer.down, activation, routing, merged)
    out = combine_reference(rows, routing.row_indices, routing_weights)
    return (
        out,
        Saved(
            hidden_states=hidden_states,
            routing_weights=routing_weights,
            gate_up_rows=None if layer.recompute_gate_up else gate_up_rows,
            gate_up_lora_rows=gate_up_lora_rows,
            down_lora_rows=down_lora_rows,
            token_indices=routing.token_indices,
            slot_indices=routing.slot_indices,
            row_indices=routing.row_indices,
            expert_offsets=routing.expert_offsets,
        ),
        None,
    )


def backward(
    layer: ExpertLayer, saved: Saved, maps: None, d_out: Tensor, needs: Needs
) -> Gradients:
    """Return the gradients that ``needs`` asks for, by the formulas of ``experts``."""
    routing, tokens, merged = saved.routing, saved.token_indices, layer.merge_aware
    gate_up_rows = saved.gate_up_rows
    if gate_up_rows is None:
        _, gate_up_rows = _project(layer.gate_up, saved.hidden_states, routing, merged, tokens)
    activation = swiglu_reference(gate_up_rows, alpha=layer.alpha, limit=layer.limit)
    gates = saved.routing_weights.flatten()[saved.slot_indices].unsqueeze(-1)
    d_down_lora_rows = _lora_rows_back(layer.down, d_out, routing, tokens)
    d_activation = _project_back(layer.down, d_out, d_down_lora_rows, routing, merged, tokens)
    d_routing = None
    if needs.routing_weights:
        d_routing = _d_routing_weights(layer, saved, d_out, activation, d_activation)
    d_down_A, d_down_B = None, None
    if needs.down:
        lora_rows = saved.down_lora_rows
        d_down_A, d_down_B = _d_factors(
            layer.down,
            rows=_scale_rows(activation, gates),
            lora_rows=None if lora_rows is None else _scale_rows(lora_rows, gates),
            d_rows=d_out,
            d_lora_rows=d_down_lora_rows,
            routing=routing,
            d_rows_indices=tokens,
        )
    if not (needs.hidden_states or needs.gate_up):
        return Gradients(None, d_routing, None, None, d_down_A, d_down_B)
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
    d_gate_up_A, d_gate_up_B = None, None
    if needs.gate_up:
        d_gate_up_A, d_gate_up_B = _d_factors(
            layer.gate_up,
            rows=saved.hidden_states,
            lora_rows=saved.gate_up_lora_rows,
            d_rows=d_gate_up_rows,
            d_lora_rows=d_gate_up_lora_rows,
            routing=routing,
            rows_indices=tokens,
        )
    return Gradients(d_hidden, d_routing, d_gate_up_A, d_gate_up_B, d_down_A, d_down_B)


def _project(
    projection: ExpertProjection,
    rows: Tensor,
    routing: Routing,
    merged: bool,
    indices: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Return ``rows A^T`` (None where the pair is absent or merged) and the projected rows."""
    low_rank = None
    if projection.lora_A is not None and projection.lora_B is not None and not merged:
        lora_rows = grouped_matmul_reference(
            rows, projection.lora_A.to(rows.dtype), routing.expert_offsets, token_indices=indices
        )
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
    layer: ExpertLayer, saved: Saved, d_out: Tensor, activation: Tensor, d_activation: Tensor
) -> Tensor:
    """Return ``dg = <dHu, H> + <dO, b_d>`` for every (token, choice), zero where absent."""
    wide = torch.promote_types(activation.dtype, torch.float32)
    row_gradients = (activation.to(wide) * d_activation.to(wide)).sum(-1)
    if layer.down.bias is not None:
        # [T, E]: the product of every token with every bias is one small matrix product.
        against_bias = d_out.to(wide) @ layer.down.bias.to(wide).mT
        experts_of_rows = torch.bucketize(
            torch.arange(row_gradients.shape[0], device=d_out.device, dtype=torch.int32),
            saved.expert_offsets[1:],
            right=True,
        ).clamp(max=against_bias.shape[1] - 1)
        row_gradients += against_bias[saved.token_indices, experts_of_rows]
    present = saved.row_indices >= 0
    if row_gradients.numel() == 0:
        return torch.zeros_like(saved.routing_weights)
    picked = row_gradients[saved.row_indices.clamp(min=0)]
    return torch.where(present, picked, 0).to(saved.routing_weights.dtype)


def _d_factors(
    projection: ExpertProjection,
    *,
    rows: Tensor,
    lora_rows: Tensor | None,
    d_rows: Tensor,
    d_lora_rows: Tensor | None,
    routing: Routing,
    rows_indices: Tensor | None = None,
    d_rows_indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``(s d_lora_rows^T rows, s d_rows^T lora_rows)`` per expert, in the factors' dtype."""
    lora_A, offsets = projection.lora_A, routing.expert_offsets
    assert lora_A is not None and d_lora_rows is not None  # asked for only with a pair
    if lora_rows is None:
        lora_rows = grouped_matmul_reference(
            rows, lora_A.to(rows.dtype), offsets, token_indices=rows_indices
        )
    d_A = ragged_outer_reference(d_lora_rows, rows, offsets, right_indices=rows_indices)
    d_B = ragged_outer_reference(d_rows, lora_rows, offsets, left_indices=d_rows_indices)
    scaling = projection.scaling
    return d_A.mul_(scaling).to(lora_A.dtype), d_B.mul_(scaling).to(lora_A.dtype)


def _scale_rows(rows: Tensor, gates: Tensor) -> Tensor:
    """Return ``gates * rows`` in the dtype of ``rows``."""
    return (rows * gates).to(rows.dtype)
