"""The expert layer on Triton: the same stages as ``torch_engine``, fused where it pays.

Bias, rank-r term and activation ride in the tile loop of the product that they follow. The gradient
of the activation is a pass of its own: fused into the product before it, it spilled registers with
almost every tile tried, and the detour of dHu through memory costs a hundredth of the layer.

The factors come in the dtype in which they are trained, fp32; each is rounded to that of the rows
once a pass, by one kernel that also lays it out for its product, and the copy lives no longer.
"""

# Legend: T tokens, K experts per token, M rows, H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

import torch
from torch import Tensor

from gptoss_kernels.combine import launch_combine, launch_routing_gradient
from gptoss_kernels.experts.products import (
    Pass,
    both_fit,
    grouped_projection,
    laid_out_in_16s,
    skinny,
)
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
from gptoss_kernels.lora import LowRankTerm, launch_ragged_outer
from gptoss_kernels.persistent import TileMaps
from gptoss_kernels.routing import Routing, launch_route
from gptoss_kernels.swiglu import launch_gated_swiglu_backward


def sort_rows(layer: ExpertLayer, router_indices: Tensor) -> SortedRows:
    """Return the rows of ``router_indices [T, K]``, sorted by expert, and room for their tiles."""
    routing = launch_route(router_indices.contiguous(), layer.gate_up.logical_shape[0])
    return SortedRows(routing, TileMaps(routing.expert_offsets, routing.num_rows))


def shared_by_tiles(
    layer: ExpertLayer, rows: int, dtype: torch.dtype, *, backward: bool, reread: bool
) -> Shared:
    """Return what the tiles of a pass share: decoded weights, if ``reread`` and both fit."""
    decoded = {} if reread and both_fit(layer, dtype) else None
    return Shared(rows, backward, decoded)


def forward(
    layer: ExpertLayer, inputs: TileInputs, rows: SortedRows, shared: Shared
) -> tuple[Tensor, KeptRows]:
    """Return the tile's output ``[T, H]`` and what ``backward`` would have to compute again."""
    this = _pass_over(layer, rows, shared, inputs.hidden_states.dtype)
    gate_up_lora, gate_up, activation = _gate_up(this, inputs.hidden_states)
    if not layer.keeps_gate_up:
        gate_up = None  # twice the activation, and the product of down_proj comes now
    down_lora = _lora_rows(this, layer.down, activation)
    out_rows = grouped_projection(
        this,
        activation,
        ExpertMatrices(layer.down, this.dtype, merged=layer.merge_aware),
        bias=layer.down.bias,
        low_rank=_term(layer.down, down_lora, layer.down.lora_B),
    )
    weights = inputs.routing_weights.contiguous()
    out = launch_combine(out_rows, this.routing.row_indices, weights)
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
    d_out = d_out.contiguous()
    this = _pass_over(layer, rows, shared, d_out.dtype)
    routing, tokens = this.routing, this.routing.token_indices
    gate_up_rows, gate_up_lora = kept.gate_up, kept.gate_up_lora
    own = gate_up_rows is None
    if gate_up_rows is None:
        made_again, gate_up_rows = _gate_up(this, inputs.hidden_states)[:2]
        gate_up_lora = made_again if gate_up_lora is None else gate_up_lora
    gates = inputs.routing_weights.flatten()[routing.slot_indices].float()
    d_down_lora_rows, against_bias = _down_skinny(this, d_out, needs.routing_weights)
    d_activation = grouped_projection(
        this,
        d_out,
        ExpertMatrices(layer.down, this.dtype, transposed=True, merged=layer.merge_aware),
        indices=tokens,
        low_rank=_term(layer.down, _unmerged(layer, d_down_lora_rows), _turned(layer.down.lora_A)),
    )
    gated = launch_gated_swiglu_backward(
        gate_up_rows,
        d_activation,
        gates,
        routing.expert_offsets[-1:],
        layer.alpha,
        layer.limit,
        overwrite=own,  # what is kept may be asked for again by another backward pass
    )
    del d_activation, gate_up_rows
    d_routing = None
    if needs.routing_weights:
        d_routing = launch_routing_gradient(
            gated.share, against_bias, routing.row_indices, inputs.routing_weights.dtype
        )
    down = None
    if needs.down:
        lora_rows = kept.down_lora
        if lora_rows is None:
            lora_rows = skinny(this, gated.activation, layer.down.lora_A)
        down = _d_factors(
            layer.down,
            routing,
            rows=(gated.activation, None),
            d_rows=(d_out, tokens),
            lora_rows=lora_rows,
            d_lora_rows=d_down_lora_rows,
            gates=gates,
            sums=sums.down,
        )
    d_gate_up_rows = gated.gate_up
    del gated  # the activation is not needed any more, and the widest product comes now
    hidden, gate_up = _gate_up_gradients(
        this, inputs.hidden_states, gate_up_lora, d_gate_up_rows, needs, sums.gate_up
    )
    return Gradients(hidden, d_routing, gate_up, down)


def _pass_over(layer: ExpertLayer, rows: SortedRows, shared: Shared, dtype: torch.dtype) -> Pass:
    assert rows.maps is not None  # made by ``sort_rows``
    return Pass(layer, rows.routing, rows.maps, dtype, shared)


def _gate_up(this: Pass, hidden_states: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return XA, Z and swiglu(Z)."""
    projection, tokens = this.layer.gate_up, this.routing.token_indices
    lora_rows = _lora_rows(this, projection, hidden_states, tokens)
    shape = (this.routing.num_rows, projection.logical_shape[1] // 2)
    activation = torch.empty(shape, dtype=this.dtype, device=hidden_states.device)
    gate_up_rows = grouped_projection(
        this,
        hidden_states,
        ExpertMatrices(projection, this.dtype, merged=this.layer.merge_aware),
        indices=tokens,
        bias=projection.bias,
        low_rank=_term(projection, lora_rows, projection.lora_B),
        activation=activation,
    )
    return lora_rows, gate_up_rows, activation


def _gate_up_gradients(
    this: Pass,
    hidden_states: Tensor,
    lora_rows: Tensor | None,
    d_gate_up_rows: Tensor,
    needs: Needs,
    sums: FactorGradients | None,
) -> tuple[Tensor | None, FactorGradients | None]:
    """Return the gradients of X and of the first LoRA pair from dZ."""
    layer, routing = this.layer, this.routing
    projection = layer.gate_up
    d_lora_rows = None
    if projection.lora_B is not None and (needs.gate_up or needs.hidden_states):
        d_lora_rows = skinny(this, d_gate_up_rows, _turned(projection.lora_B))
    d_hidden = None
    if needs.hidden_states:
        d_rows = grouped_projection(
            this,
            d_gate_up_rows,
            ExpertMatrices(projection, this.dtype, transposed=True, merged=layer.merge_aware),
            low_rank=_term(projection, _unmerged(layer, d_lora_rows), _turned(projection.lora_A)),
        )
        d_hidden = launch_combine(d_rows, routing.row_indices)
    if not needs.gate_up or d_lora_rows is None:
        return d_hidden, None
    if lora_rows is None:
        lora_rows = skinny(this, hidden_states, projection.lora_A, routing.token_indices)
    return d_hidden, _d_factors(
        projection,
        routing,
        rows=(hidden_states, routing.token_indices),
        d_rows=(d_gate_up_rows, None),
        lora_rows=lora_rows,
        d_lora_rows=d_lora_rows,
        sums=sums,
    )


def _lora_rows(
    this: Pass, projection: ExpertProjection, rows: Tensor, indices: Tensor | None = None
) -> Tensor | None:
    """Return ``rows A^T``; None without a pair, or merged, where the forward needs none."""
    if projection.lora_A is None or this.layer.merge_aware:
        return None
    return skinny(this, rows, projection.lora_A, indices)


def _down_skinny(
    this: Pass, d_out: Tensor, routing_gradient: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return dYB ``[M, R]`` and <dO, b_d> ``[M]`` from one read of dO.

    The bias rides along as one more column of the factor.
    """
    projection, rank = this.layer.down, this.layer.down.rank
    bias = projection.bias if routing_gradient else None
    width = rank + (bias is not None)
    if not width:
        return None, None
    num_experts, out_features, _ = projection.logical_shape
    factor = torch.empty(
        (num_experts, width, out_features), dtype=this.dtype, device=projection.device
    )
    if projection.lora_B is not None:
        factor[:, :rank] = projection.lora_B.mT
    if bias is not None:
        factor[:, rank] = bias
    both = skinny(this, d_out, factor, this.routing.token_indices)
    return both[:, :rank] if rank else None, both[:, rank] if bias is not None else None


def _d_factors(
    projection: ExpertProjection,
    routing: Routing,
    *,
    rows: tuple[Tensor, Tensor | None],
    d_rows: tuple[Tensor, Tensor | None],
    lora_rows: Tensor,
    d_lora_rows: Tensor | None,
    gates: Tensor | None = None,
    sums: FactorGradients | None,
) -> FactorGradients:
    """Return the gradients of A and B, added to ``sums``; rows come with their indices."""
    assert d_lora_rows is not None  # asked for only with a pair
    offsets, scaling = routing.expert_offsets, projection.scaling
    d_A, d_B = (None, None) if sums is None else sums
    return FactorGradients(
        launch_ragged_outer(d_lora_rows, rows[0], offsets, rows[1], gates, scaling, sums=d_A),
        launch_ragged_outer(
            lora_rows, d_rows[0], offsets, d_rows[1], gates, scaling, transposed=True, sums=d_B
        ),
    )


def _term(
    projection: ExpertProjection, lora_rows: Tensor | None, factor: Tensor | None
) -> LowRankTerm | None:
    """Return the rank-r term of a product; None without a pair, or merged."""
    if lora_rows is None or factor is None:
        return None
    return LowRankTerm(lora_rows, laid_out_in_16s(factor, lora_rows.dtype), projection.scaling)


def _unmerged(layer: ExpertLayer, lora_rows: Tensor | None) -> Tensor | None:
    """Return None in merge-aware mode, where the pair is inside the matrix already."""
    return None if layer.merge_aware else lora_rows


def _turned(factor: Tensor | None) -> Tensor | None:
    """Return ``[E, K, R]`` of ``[E, R, K]``."""
    return None if factor is None else factor.mT
