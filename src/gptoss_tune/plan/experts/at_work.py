"""Bytes of one expert layer at work: routed rows of a tile of tokens, decoded weights, traffic.

The layer goes through its tokens in tiles (``train.expert_tile``). What grows with a tile are the
rows of its tokens, one for each of their experts; what does not are the decoded weights, which are
made again for each tile unless both projections fit into the bound of the scratch.
"""

# Legend: T tokens of a micro-batch, K experts per token, H hidden, I intermediate, E experts.

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_tune.plan.training_setup import TrainingSetup

SCRATCH_BYTES = (2**31, 2**26)
"""Decoded expert weights that exist at a time, usually and with ``activation_checkpointing:
offload``: a layer, or one expert (48 MB), which costs launches and no arithmetic."""
SMALLEST_TILE = 2048
"""Tokens of a tile that ``train.expert_tile: auto`` takes at least: 256 rows for each of 32
experts, 64 for each of 128; with fewer, products wait for weights."""
_TILE_STEP = 128
_FP32_BYTES, _PACKED_BYTES = 4, 17 / 32  # a value in fp32; one of a block of MXFP4


def tile_sizes(tokens: int) -> Iterator[int]:
    """Yield the tiles below ``tokens`` to be tried, the largest first, whole multiples of 128."""
    count, before = 2, tokens
    while before > SMALLEST_TILE:
        size = max(SMALLEST_TILE, -(-tokens // count // _TILE_STEP) * _TILE_STEP)
        if size < before:
            yield size
            before = size
        count += 1


def tiles(setup: TrainingSetup) -> int:
    """Return how many tiles a micro-batch goes through the experts in."""
    return -(-setup.tokens // setup.tile_tokens)


def backward_rows(setup: TrainingSetup) -> int:
    """Return the bytes of one tile's rows, and of the gradients of the layer's factors.

    The gradient of gate_up, in the place of gate_up where that is computed again, and beside it the
    gradient of the activation or of X; the rank-r rows of both projections and their gradients.
    """
    a, value = setup.architecture, setup.value_bytes
    on_experts = [f for f in setup.factors_of(setup.lowest_layer) if f.on_experts]
    row = (2 * a.intermediate + max(a.intermediate, a.hidden)) * value
    row += 2 * sum(f.rank for f in on_experts) * value + _FP32_BYTES
    held = setup.tile_tokens * a.experts_per_token * row
    if tiles(setup) > 1:
        held += setup.tile_tokens * a.hidden * value  # summed over the experts of a token
    # Before they are added to what earlier micro-batches left; of chosen experts they come as those
    # of all, and theirs are picked out.
    return held + _FP32_BYTES * sum(f.laid_out + f.parameters for f in on_experts)


def input_gradient(setup: TrainingSetup) -> int:
    """Return the bytes of the gradient of the experts' input, where they add to the peak.

    Without tiles it is made when the decoded weights have gone.
    """
    gradient = setup.tokens * setup.architecture.hidden * setup.value_bytes
    return gradient if tiles(setup) > 1 else max(0, gradient - scratch(setup))


def forward_rows(setup: TrainingSetup) -> int:
    """Return the bytes of one tile's rows in a pass without gradients.

    Of every row gate_up and its activation, or that and the output, and what the A factors gave.
    """
    a, value = setup.architecture, setup.value_bytes
    on_experts = [f for f in setup.factors_of(setup.lowest_layer) if f.on_experts]
    ranks = sum(f.rank for f in on_experts)
    row = (max(3 * a.intermediate, a.intermediate + a.hidden) + ranks + 1) * value
    held = setup.tile_tokens * a.experts_per_token * row
    held += _FP32_BYTES * sum(f.laid_out for f in on_experts)  # chosen ones among zeros
    return held + (setup.tile_tokens * a.hidden * value if tiles(setup) > 1 else 0)


def scratch(setup: TrainingSetup, *, backward: bool = True) -> int:
    """Return the bytes of decoded experts that exist at a time, in a step or a forward pass."""
    a = setup.architecture
    if setup.model.experts_precision != "mxfp4":
        return 0
    sizes = _decoded_sizes(setup)
    if setup.model.backend == "torch":  # its grouped product takes all experts at once
        return max(sizes) * a.experts
    again = backward and setup.train.activation_checkpointing != "none"
    twice = again or tiles(setup) > 1
    if twice and _both_fit(setup):
        return sum(sizes) * a.experts  # decoded for several products
    bound = SCRATCH_BYTES[setup.train.activation_checkpointing == "offload"]
    return max(sizes) * max(1, min(a.experts, bound // max(sizes)))


def decoding_traffic(setup: TrainingSetup) -> int:
    """Return the bytes that decoding reads and writes in an optimizer step, on one GPU.

    A layer decodes both projections forward; backward both once more, and gate_up twice where it
    is computed again; each time for every tile, unless both fit into the scratch together.
    """
    a = setup.architecture
    if setup.model.experts_precision != "mxfp4":
        return 0
    gate_up, down = (
        a.experts * inner * out * (setup.value_bytes + _PACKED_BYTES)
        for inner, out in (a.expert_shapes["gate_up_proj"], a.expert_shapes["down_proj"])
    )
    again = setup.train.activation_checkpointing != "none"
    count, kept = tiles(setup), setup.model.backend != "torch" and _both_fit(setup)
    forward = (1 if kept else count) * (gate_up + down)
    backward = (1 if kept else count) * (gate_up * (1 if kept or not again else 2) + down)
    trained = a.layers - setup.lowest_layer
    layers = a.layers * forward + trained * backward
    return int(layers * setup.train.gradient_accumulation_steps)


def _decoded_sizes(setup: TrainingSetup) -> list[int]:
    shapes = setup.architecture.expert_shapes.values()
    return [inner * out * setup.value_bytes for inner, out in shapes]


def _both_fit(setup: TrainingSetup) -> bool:
    bound = SCRATCH_BYTES[setup.train.activation_checkpointing == "offload"]
    return sum(_decoded_sizes(setup)) * setup.architecture.experts <= bound
