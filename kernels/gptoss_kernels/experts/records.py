"""What passes between the forward and the backward half of an expert layer.

Both engines (``torch_engine``, ``triton_engine``) are two functions over these records, so the
autograd node in ``experts`` is the same for both and the engines can be compared stage by stage.
"""

# Legend: T tokens, K experts per token, M rows, H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor

from gptoss_kernels.experts.projection import ExpertProjection
from gptoss_kernels.persistent import TileMaps
from gptoss_kernels.routing import Routing


@dataclass
class KeptExperts:
    """What one layer call keeps for the forward pass that checkpointing repeats, and its backward.

    Attributes:
        of: The router's choice ``[T, K]`` that was sorted; ``None`` until then. Another tensor is
            sorted anew, even if it holds the same numbers.
        routing: The sorted rows.
        maps: Their tiles; ``None`` in plain torch, which has none.
        matrices: What the repeated pass has decoded, ``[E, out, in]`` by the projection's name, for
            the backward that follows at once; ``None`` before and after, and where the bound of the
            scratch has no room for both.
    """

    of: Tensor | None = None
    routing: Routing | None = None
    maps: TileMaps | None = None
    matrices: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class ExpertLayer:
    """Everything of a layer call that is not a tensor of the graph.

    Attributes:
        gate_up: First projection.
        down: Second projection.
        alpha: Slope of the activation's sigmoid.
        limit: Bound of its clamps.
        merge_aware: Serve ``Q(W + s B A)`` to the products.
        recompute_gate_up: Keep no Z.
        engine: How the large products run on Triton.
        scratch_bytes: Bound of the decoded scratch.
        kept: What waits for a second forward pass.
    """

    gate_up: ExpertProjection
    down: ExpertProjection
    alpha: float
    limit: float
    merge_aware: bool
    recompute_gate_up: bool
    engine: Literal["auto", "fused", "grouped_mm", "packed", "quack"]
    scratch_bytes: int
    kept: KeptExperts | None = None

    def without_factors(self) -> ExpertLayer:
        """Return the frozen part, which may outlive the graph."""
        return self.with_factors(None, None, None, None)

    def with_factors(
        self,
        gate_up_A: Tensor | None,
        gate_up_B: Tensor | None,
        down_A: Tensor | None,
        down_B: Tensor | None,
    ) -> ExpertLayer:
        """Return the same layer with these LoRA factors."""
        return replace(
            self,
            gate_up=replace(self.gate_up, lora_A=gate_up_A, lora_B=gate_up_B),
            down=replace(self.down, lora_A=down_A, lora_B=down_B),
        )


class Saved(NamedTuple):
    """The tensors kept from forward to backward; none of them is a base weight.

    Attributes:
        hidden_states: X, ``[T, H]``.
        routing_weights: ``[T, K]``.
        gate_up_rows: Z, ``[M, 2I]``; None when it is to be computed again.
        gate_up_lora_rows: XA, ``[M, R]``; None without a LoRA pair or in merge-aware mode.
        down_lora_rows: HA, ``[M, R]``; likewise.
        token_indices: Of the ``Routing``, like the next three.
        slot_indices: ``[M]``.
        row_indices: ``[T, K]``.
        expert_offsets: ``[E + 1]``.
    """

    hidden_states: Tensor
    routing_weights: Tensor
    gate_up_rows: Tensor | None
    gate_up_lora_rows: Tensor | None
    down_lora_rows: Tensor | None
    token_indices: Tensor
    slot_indices: Tensor
    row_indices: Tensor
    expert_offsets: Tensor

    @property
    def routing(self) -> Routing:
        """The four index tensors as a ``Routing``."""
        return Routing(self.token_indices, self.slot_indices, self.row_indices, self.expert_offsets)


class Needs(NamedTuple):
    """Which gradients will be read.

    Attributes:
        hidden_states: Gradient of X.
        routing_weights: Gradient of the routing weights.
        gate_up: Gradients of the first LoRA pair.
        down: Gradients of the second LoRA pair.
    """

    hidden_states: bool
    routing_weights: bool
    gate_up: bool
    down: bool


class Gradients(NamedTuple):
    """The gradients of a layer call; None where none was asked for."""

    hidden_states: Tensor | None = None
    routing_weights: Tensor | None = None
    gate_up_lora_A: Tensor | None = None
    gate_up_lora_B: Tensor | None = None
    down_lora_A: Tensor | None = None
    down_lora_B: Tensor | None = None
