"""The expert forward of gpt-oss, registered with transformers as ``gptoss_tune``.

Legend: T tokens, K experts per token, H hidden, I intermediate, E experts, R rank.

transformers dispatches ``GptOssExperts.forward`` through its ``ExpertsInterface``; this module adds
one name to it and patches nothing. The function only translates: it reads the layer's two stacks
(packed or dense, adapted or not) and calls ``gptoss_kernels.experts``, which owns the maths and the
backward. The factors go there as PEFT holds them, in fp32: the kernels round what they multiply
with, a copy is not kept for the backward pass, and the gradients come back unrounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from gptoss_kernels import ExpertProjection
from gptoss_kernels.experts import experts
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from gptoss_tune.model.expert_weight import ExpertWeight, LowRankExpertWeight

EXPERTS_IMPLEMENTATION = "gptoss_tune"


@dataclass(frozen=True)
class ExpertSettings:
    """How the expert layers of one model compute.

    Attributes:
        backend: Which kernels run.
        merge_aware: Compute with the weights that an MXFP4 export of the adapter will hold.
        recompute_gate_up: Drop the gate_up output after the forward and compute it again in the
            backward, for memory.
        scratch_bytes: Bound of the decoded weights that exist at a time on Triton.
        tile_tokens: Tokens that go through the experts at a time; ``None``: all of a micro-batch.
    """

    backend: Literal["torch", "triton"] = "torch"
    merge_aware: bool = False
    recompute_gate_up: bool = False
    scratch_bytes: int = 2**31
    tile_tokens: int | None = None


class LowRankUpdate(NamedTuple):
    """The adapter of one expert stack.

    Attributes:
        lora_A: ``[E, R, in]``.
        lora_B: ``[E, out, R]``, any strides.
        scaling: ``alpha / rank``.
    """

    lora_A: Tensor
    lora_B: Tensor
    scaling: float


def set_expert_settings(model: nn.Module, settings: ExpertSettings) -> None:
    """Give every expert layer of ``model`` its settings.

    Raises:
        ValueError: The model has no layer whose experts run through this module.
    """
    layers = [m for m in model.modules() if isinstance(m, cast(type, GptOssExperts))]
    if not layers:
        raise ValueError("the model has no GptOssExperts layer; only gpt-oss models are supported")
    for layer in layers:
        layer.expert_settings = settings  # pyright: ignore[reportArgumentType]


def experts_forward(
    self: nn.Module,
    hidden_states: Tensor,
    router_indices: Tensor,
    routing_weights: Tensor,
    *,
    low_rank: Mapping[str, LowRankUpdate] | None = None,
) -> Tensor:
    """Return the weighted sum of each token's K experts.

    Args:
        self: A ``GptOssExperts`` layer; its stacks may be plain parameters, ``ExpertWeight`` or,
            where PEFT's own wrapper applies an adapter, ``LowRankExpertWeight``.
        hidden_states: ``[T, H]``.
        router_indices: ``[T, K]`` int64.
        routing_weights: ``[T, K]``.
        low_rank: Adapters by the name of their stack.

    Returns:
        ``[T, H]``, dtype of ``hidden_states``.
    """
    layer = cast(Any, self)  # a GptOssExperts, whose decorator hides its type
    settings = getattr(self, "expert_settings", None) or ExpertSettings()
    updates = low_rank or {}
    return experts(
        hidden_states,
        router_indices,
        routing_weights,
        _projection(layer.gate_up_proj, layer.gate_up_proj_bias, updates.get("gate_up_proj")),
        _projection(layer.down_proj, layer.down_proj_bias, updates.get("down_proj")),
        limit=layer.limit,
        alpha=layer.alpha,
        backend=settings.backend,
        merge_aware=settings.merge_aware,
        recompute_gate_up=settings.recompute_gate_up,
        scratch_bytes=settings.scratch_bytes,
        tile_tokens=settings.tile_tokens,
        kept=getattr(self, "experts_kept", None),
    )


def _projection(weight: Tensor, bias: Tensor, update: LowRankUpdate | None) -> ExpertProjection:
    if isinstance(weight, LowRankExpertWeight):
        update = LowRankUpdate(weight.lhs.mT, weight.rhs.mT, weight.scaling)
        weight = weight.base
    stored = weight.stored if isinstance(weight, ExpertWeight) else weight
    if update is None:
        return ExpertProjection(stored, bias)
    return ExpertProjection(stored, bias, *update)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, experts_forward)
