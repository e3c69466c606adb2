"""The expert layer of gpt-oss for LoRA training: one autograd function, the base never dense.

Rows sorted by expert, e the expert of a row, g its routing weight, s = alpha / rank::

    forward   XA = X A_g^T         Z = X W_gu^T + b_gu + s XA B_g^T         H = swiglu(Z)
              HA = H A_d^T         Y = H W_d^T  + b_d  + s HA B_d^T         out[t] = sum_k g Y
    backward  dYB = dO B_d         dHu = dO W_d + s dYB A_d         dg = <dHu, H> + <dO, b_d>
              dH = g dHu           dZ = swiglu'(Z) dH               dZB = dZ B_g
              dX = dZ W_gu + s dZB A_g         dA_g = s dZB^T X             dB_g = s dZ^T XA
              dA_d = s dYB^T (g H)             dB_d = s dO^T (g HA)

Only X, Z, XA, HA, g and the indices are kept for backward, and the factors as they came, which are
no copies; the weights are decoded again. Under activation checkpointing the pass that is repeated
is there to save X, g and the indices once more, so it multiplies nothing: backward starts from X.
Rejected: letting autograd differentiate the plain formula, which keeps every decoded weight alive,
and adding ``s B A`` to the weight, which makes both a dense weight and a dense gradient.
"""

# Legend: T tokens, K experts per token, M = T*K rows, H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

from itertools import islice
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gptoss_kernels.backend import (
    Backend,
    on_device,
    require_backend,
    require_triton,
    without_autocast,
)
from gptoss_kernels.experts import tiled, torch_engine, triton_engine
from gptoss_kernels.experts.engines import ENGINE_NAMES, ExpertEngine, find_obstacle
from gptoss_kernels.experts.projection import ExpertProjection
from gptoss_kernels.experts.records import (
    ExpertLayer,
    KeptExperts,
    KeptRows,
    Needs,
    SortedRows,
    TileInputs,
)
from gptoss_kernels.lora import MAX_RANK
from gptoss_kernels.mxfp4 import MXFP4_BLOCK, Mxfp4Weight, dequantize_reference
from gptoss_kernels.routing import Routing
from gptoss_kernels.swiglu import swiglu_reference

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def experts(
    hidden_states: Tensor,
    router_indices: Tensor,
    routing_weights: Tensor,
    gate_up: ExpertProjection,
    down: ExpertProjection,
    *,
    alpha: float = 1.702,
    limit: float = 7.0,
    backend: Backend = "torch",
    merge_aware: bool = False,
    recompute_gate_up: bool = False,
    engine: ExpertEngine = "auto",
    scratch_bytes: int = 2**31,
    tile_tokens: int | None = None,
    kept: KeptExperts | None = None,
) -> Tensor:
    """Return ``sum_k g_k * down_{e_k}(swiglu(gate_up_{e_k}(x)))`` for every token x.

    The routing weights get a gradient even when the router is frozen: through them it flows on to
    the hidden states. A router index of E or more means the expert lives on another rank and adds
    nothing here.

    Args:
        hidden_states: ``[T, H]``; its dtype is the dtype of all products.
        router_indices: ``[T, K]`` int32 or int64, 0 or more.
        routing_weights: ``[T, K]`` floating.
        gate_up: The first projection, ``out`` = 2*I, gate and up interleaved.
        down: The second projection, ``in`` = I, ``out`` = H.
        alpha: Slope of the sigmoid in the activation.
        limit: Bound of its clamps.
        backend: "torch" runs anywhere; "triton" needs a GPU that Triton supports (or its
            interpreter), and bf16, fp16 or fp32.
        merge_aware: Run on ``Q(W + s B A)``, the weights an MXFP4 export of this adapter would
            hold, with a straight-through gradient to A and B. The factors are then used in the
            dtype they come in: hand them over in fp32 if that is how they are stored.
        recompute_gate_up: Drop Z after forward and compute it again in backward: 2*M*I values less,
            one product more.
        engine: On Triton, how the large products run: "fused" is our kernel on a decoded scratch,
            "grouped_mm" torch's and "quack" QuACK's on the same scratch, "packed" decodes in the
            loop (forward); "auto" chooses by shape and by what was measured on this GPU.
        scratch_bytes: On Triton, bound of the decoded scratch; a larger weight is served in groups
            of experts ("grouped_mm" and "quack" take all at once, so "auto" takes them only within
            the bound).
        tile_tokens: Compute this many tokens at a time, forward and backward; ``None``: all at
            once. ``tiled`` says what that changes (bytes) and what not (bits).
        kept: Under activation checkpointing, one object for both forward passes of a call. Neither
            keeps Z, XA and HA: backward computes them again, from X. With ``kept.repeated`` the
            call is the second one: it finds the rows sorted, if it is given the very same
            ``router_indices``, multiplies nothing and returns NaN, which nobody may read.

    Returns:
        ``[T, H]`` in the dtype of ``hidden_states``. Bit-identical from run to run.

    Raises:
        ValueError: A shape, dtype, device or index that does not fit; a base tensor that asks for a
            gradient; a backend that cannot run here.

    See ``experts_reference``; openai/gpt-oss, gpt_oss/torch/model.py; LoRA, arXiv:2106.09685.
    """
    _check_inputs(hidden_states, router_indices, routing_weights, gate_up, down)
    if kept is None or kept.of is not router_indices:
        _check_indices(router_indices)
    _check_backend(hidden_states, backend, engine, max(gate_up.rank, down.rank))
    if tile_tokens is not None and tile_tokens < 1:
        raise ValueError(f"tile_tokens needs 1 or more, or None for all, got {tile_tokens}")
    layer = ExpertLayer(
        gate_up=gate_up,
        down=down,
        alpha=alpha,
        limit=limit,
        merge_aware=merge_aware,
        recompute_gate_up=recompute_gate_up,
        engine=engine,
        scratch_bytes=scratch_bytes,
        tile_tokens=tile_tokens,
        for_backward=torch.is_grad_enabled(),
        kept=kept,
    )
    # Without tokens there is nothing to launch; the torch engine returns the empty results.
    stages = triton_engine if backend == "triton" and hidden_states.shape[0] else torch_engine
    return _Experts.apply(
        hidden_states,
        routing_weights,
        gate_up.lora_A,
        gate_up.lora_B,
        down.lora_A,
        down.lora_B,
        router_indices,
        layer,
        stages,
    )


def experts_reference(
    hidden_states: Tensor,
    router_indices: Tensor,
    routing_weights: Tensor,
    gate_up: ExpertProjection,
    down: ExpertProjection,
    *,
    alpha: float = 1.702,
    limit: float = 7.0,
) -> Tensor:
    """Return what ``experts`` returns, by the plain formula; autograd finds the gradients.

    Every (token, choice) pair is computed alone with the dense weight ``W + s B A`` of its expert:
    slow, wide and easy to check. In float64 this is the truth the tests hold every backend to.

    Args:
        hidden_states: ``[T, H]``.
        router_indices: ``[T, K]``; E or more means absent.
        routing_weights: ``[T, K]``.
        gate_up: The first projection.
        down: The second projection.
        alpha: Slope of the sigmoid.
        limit: Bound of the clamps.

    Returns:
        ``[T, H]`` in the dtype of ``hidden_states``.
    """
    num_experts = gate_up.logical_shape[0]
    first, second = (_dense_weight(p, hidden_states.dtype) for p in (gate_up, down))
    out = torch.zeros_like(hidden_states)
    for choice in range(router_indices.shape[1]):
        present = router_indices[:, choice] < num_experts
        index = router_indices[:, choice].clamp(max=num_experts - 1)
        pre = torch.einsum("th,toh->to", hidden_states, first[index])
        if gate_up.bias is not None:
            pre = pre + gate_up.bias.to(pre.dtype)[index]
        rows = swiglu_reference(pre, alpha=alpha, limit=limit)
        rows = torch.einsum("ti,toi->to", rows, second[index])
        if down.bias is not None:
            rows = rows + down.bias.to(rows.dtype)[index]
        weighted = routing_weights[:, choice, None].to(rows.dtype) * rows
        out = out + torch.where(present[:, None], weighted, 0)
    return out


def _dense_weight(projection: ExpertProjection, dtype: torch.dtype) -> Tensor:
    """Return ``W + s B A``, ``[E, out, in]``, differentiable in A and B."""
    weight = projection.weight
    if isinstance(weight, Mxfp4Weight):
        dense = dequantize_reference(weight.blocks, weight.scales, dtype=dtype)
    else:
        dense = weight.mT.to(dtype)
    if projection.lora_A is None or projection.lora_B is None:
        return dense
    return dense + projection.scaling * projection.lora_B.to(dtype) @ projection.lora_A.to(dtype)


class _Experts(torch.autograd.Function):
    """The layer as one node of the graph; the module docstring has the formulas."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        routing_weights: Tensor,
        gate_up_A: Tensor | None,
        gate_up_B: Tensor | None,
        down_A: Tensor | None,
        down_B: Tensor | None,
        router_indices: Tensor,
        layer: ExpertLayer,
        stages: ModuleType,
    ) -> Tensor:
        """Run the forward stages and keep what backward needs."""
        inputs = TileInputs(hidden_states, routing_weights)
        with without_autocast(hidden_states.device), on_device(hidden_states):
            tiles = tiled.sort_tiles(layer, stages, router_indices)
            if layer.kept is not None and layer.kept.repeated:
                nothing = hidden_states.new_full((), float("nan"))
                out = nothing.expand(hidden_states.shape)
            else:
                out, tiles = tiled.forward(layer, stages, inputs, tiles)
        # Through save_for_backward, so that checkpointing and offloading see the activations; the
        # base weights stay outside of it, so that neither copies or moves them.
        of_tiles = [t for tile in tiles for t in (*tile.kept, *_index_tensors(tile.rows.routing))]
        factors = (gate_up_A, gate_up_B, down_A, down_B)
        ctx.save_for_backward(hidden_states, routing_weights, *factors, *of_tiles)
        ctx.spans = [(tile.first, tile.last, tile.rows.maps) for tile in tiles]
        ctx.layer, ctx.stages = layer.without_factors(), stages
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, d_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of ``forward``'s inputs."""
        hidden_states, routing_weights, *rest = ctx.saved_tensors
        factors, of_tiles = rest[:4], iter(rest[4:])
        layer = ctx.layer.with_factors(*factors)
        tiles = []
        for first, last, maps in ctx.spans:
            kept = KeptRows(*islice(of_tiles, 3))
            rows = SortedRows(Routing(*islice(of_tiles, 4)), maps)
            tiles.append(tiled.Tile(first, last, rows, kept))
        for_hidden, for_routing, a1, b1, a2, b2, *_ = ctx.needs_input_grad
        needs = Needs(for_hidden, for_routing, gate_up=a1 or b1, down=a2 or b2)
        inputs = TileInputs(hidden_states, routing_weights)
        with without_autocast(d_out.device), on_device(d_out):
            found = tiled.backward(layer, ctx.stages, inputs, tiles, d_out, needs)
        of_factors = [*(found.gate_up or (None, None)), *(found.down or (None, None))]
        for at, (gradient, factor) in enumerate(zip(of_factors, factors, strict=True)):
            of_factors[at] = None if gradient is None else gradient.to(factor.dtype)
        return (found.hidden_states, found.routing_weights, *of_factors, None, None, None)


def _index_tensors(routing: Routing) -> tuple[Tensor, ...]:
    return (
        routing.token_indices,
        routing.slot_indices,
        routing.row_indices,
        routing.expert_offsets,
    )


def _check_inputs(
    hidden_states: Tensor,
    router_indices: Tensor,
    routing_weights: Tensor,
    gate_up: ExpertProjection,
    down: ExpertProjection,
) -> None:
    """Raise ValueError for inputs that would give a wrong number or an obscure failure later."""
    num_experts, twice_intermediate, hidden = gate_up.logical_shape
    if down.logical_shape != (num_experts, hidden, twice_intermediate // 2):
        raise ValueError(
            f"down needs (E, out, in) = {(num_experts, hidden, twice_intermediate // 2)} to follow "
            f"gate_up {gate_up.logical_shape}, got {down.logical_shape}"
        )
    if hidden_states.dim() != 2 or hidden_states.shape[1] != hidden:
        raise ValueError(
            f"hidden_states needs shape [T, {hidden}], got {tuple(hidden_states.shape)}; flatten "
            f"batch and sequence first"
        )
    if not hidden_states.is_contiguous():
        raise ValueError(
            f"hidden_states needs contiguous rows, got strides {hidden_states.stride()}; call "
            f".contiguous()"
        )
    if hidden_states.dtype not in _DTYPES:
        raise ValueError(f"hidden_states needs a floating dtype, got {hidden_states.dtype}")
    if hidden % MXFP4_BLOCK or (twice_intermediate // 2) % MXFP4_BLOCK:
        raise ValueError(
            f"hidden and intermediate sizes need to be divisible by {MXFP4_BLOCK}, got {hidden} "
            f"and {twice_intermediate // 2}"
        )
    shape = (hidden_states.shape[0], router_indices.shape[-1])
    if router_indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"router_indices needs int32 or int64, got {router_indices.dtype}")
    if tuple(router_indices.shape) != shape or tuple(routing_weights.shape) != shape:
        raise ValueError(
            f"router_indices and routing_weights need one shape [T, K] with T = {shape[0]}, got "
            f"{tuple(router_indices.shape)} and {tuple(routing_weights.shape)}"
        )
    if router_indices.numel() >= 2**31:
        raise ValueError(f"expected fewer than 2^31 rows T * K, got {router_indices.numel()}")
    if not routing_weights.is_floating_point():
        raise ValueError(f"routing_weights needs a floating dtype, got {routing_weights.dtype}")
    tensors = (
        router_indices,
        routing_weights,
        gate_up.bias,
        gate_up.lora_A,
        down.bias,
        down.lora_A,
    )
    devices = {gate_up.device, down.device, *(t.device for t in tensors if t is not None)}
    if devices != {hidden_states.device}:
        raise ValueError(
            f"everything needs to be on the device of hidden_states, {hidden_states.device}; got "
            f"{sorted(map(str, devices))}"
        )


def _check_backend(
    hidden_states: Tensor, backend: Backend, engine: ExpertEngine, rank: int
) -> None:
    """Raise ValueError for a backend or an engine that cannot run on these tensors."""
    require_backend(backend)
    if engine not in ENGINE_NAMES:
        raise ValueError(f"unknown engine {engine!r}; use one of {', '.join(ENGINE_NAMES)}")
    if backend == "torch":
        if engine != "auto":
            raise ValueError(f'engine {engine!r} belongs to backend "triton", got "torch"')
        return
    require_triton("experts", hidden_states)
    if rank > MAX_RANK:
        raise ValueError(
            f'backend "triton" takes a rank of at most {MAX_RANK} on experts, got {rank}; use '
            f'backend "torch" or a smaller rank'
        )
    if obstacle := find_obstacle(engine, hidden_states.device, hidden_states.dtype):
        raise ValueError(f'engine {engine!r} cannot run: {obstacle}; use engine "fused"')


def _check_indices(router_indices: Tensor) -> None:
    """Refuse negative router indices; on a GPU the check runs there, without waiting for it."""
    if router_indices.numel() == 0:
        return
    fine = (router_indices >= 0).all()
    if router_indices.device.type == "cpu":
        if not fine:
            raise ValueError(
                f"router_indices needs values of 0 or more, got {int(router_indices.min())}; an "
                f"expert of another rank is marked by an index of E or more"
            )
    else:
        message = "router_indices holds a negative value"
        torch._assert_async(fine, message)  # pyright: ignore[reportPrivateImportUsage]
