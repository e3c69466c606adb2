"""What passes between the forward and the backward half of an expert layer.

Both engines (``torch_engine``, ``triton_engine``) are functions over these records, one tile of
tokens at a time, so the autograd node in ``experts`` and the loop in ``tiled`` are the same for
both and the engines can be compared stage by stage.
"""

# Legend: T tokens, K experts per token, M rows, H hidden, I intermediate, E experts, R rank.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from torch import Tensor

from gptoss_kernels.experts.projection import ExpertProjection
from gptoss_kernels.persistent import TileMaps
from gptoss_kernels.routing import Routing


class SortedRows(NamedTuple):
    """The rows of one tile of tokens, sorted by expert.

    Attributes:
        routing: Of the tile; token 0 is its first.
        maps: Their tiles of rows; ``None`` in plain torch, which has none.
    """

    routing: Routing
    maps: TileMaps | None


@dataclass
class KeptExperts:
    """What one layer call keeps for the forward pass that checkpointing repeats.

    Attributes:
        keeps_rows: Keep the sorted rows for the repeated pass, 48 bytes a token at K = 4; without
            them it sorts again.
        repeated: Said by the caller in the second pass: it is there to rebuild the graph, and
            computes nothing. What it returns is NaN and must not be read.
        of: The router's choice ``[T, K]`` that was sorted; ``None`` until then. Another tensor is
            sorted anew, even if it holds the same numbers.
        rows: The sorted rows, tile by tile.
    """

    keeps_rows: bool = True
    repeated: bool = False
    of: Tensor | None = None
    rows: list[SortedRows] | None = None


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
        tile_tokens: Tokens that are computed at a time; ``None``: all.
        for_backward: A backward pass may follow.
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
    tile_tokens: int | None = None
    for_backward: bool = True
    kept: KeptExperts | None = None

    @property
    def keeps_gate_up(self) -> bool:
        """Whether a backward pass will read Z instead of computing it again."""
        return self.for_backward and self.kept is None and not self.recompute_gate_up

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


@dataclass
class Shared:
    """What the tiles of one pass have in common.

    Attributes:
        rows: M of the whole call. Engines and the shapes of their tiles are chosen by it, so that a
            tile of tokens is computed by the very kernels that the whole call would run on.
        backward: The direction of the pass.
        decoded: Decoded matrices ``[E, out, in]`` by the projection's name, from their first
            product to their last; ``None`` where nothing reads them twice or the bound of the
            scratch has no room for both.
        last: The tile at work is the last one.
    """

    rows: int
    backward: bool
    decoded: dict[str, Tensor] | None = None
    last: bool = True


class KeptRows(NamedTuple):
    """What a tile keeps from forward to backward beside its inputs; ``None`` is computed again.

    Attributes:
        gate_up: Z, ``[M, 2I]``.
        gate_up_lora: XA, ``[M, R]``; None also without a LoRA pair and in merge-aware mode.
        down_lora: HA, ``[M, R]``; likewise.
    """

    gate_up: Tensor | None = None
    gate_up_lora: Tensor | None = None
    down_lora: Tensor | None = None


class TileInputs(NamedTuple):
    """The tensors of the graph that a tile reads, cut to its tokens.

    Attributes:
        hidden_states: X, ``[T, H]``.
        routing_weights: ``[T, K]``.
    """

    hidden_states: Tensor
    routing_weights: Tensor


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


class FactorGradients(NamedTuple):
    """Gradients of a projection's LoRA pair, in fp32 (fp64 for fp64); tiles add to them in place.

    Attributes:
        lora_A: ``[E, R, in]``.
        lora_B: ``[E, out, R]``.
    """

    lora_A: Tensor
    lora_B: Tensor


class Gradients(NamedTuple):
    """The gradients of a tile, or of a call; None where none was asked for.

    Attributes:
        hidden_states: ``[T, H]``.
        routing_weights: ``[T, K]``.
        gate_up: Of the first LoRA pair.
        down: Of the second.
    """

    hidden_states: Tensor | None = None
    routing_weights: Tensor | None = None
    gate_up: FactorGradients | None = None
    down: FactorGradients | None = None
