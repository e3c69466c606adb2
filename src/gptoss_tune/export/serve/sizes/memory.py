"""Memory that one GPU needs to serve: its share of the weights, and the cache of one request.

The cache is an upper bound of what one request of the full context takes: a layer of full attention
keeps every token's keys and values; one with a sliding window keeps the window and what a step of
the scheduler may add to it. What an engine needs besides (activations, graphs, the CUDA context) is
not known before it runs and is not counted, so a model that is refused here cannot be served, and
one that is let through may still be tight.

Experts in MXFP4 are split by blocks of 32: ``ceil(blocks / GPUs)`` blocks a GPU, so eight GPUs hold
12 of gpt-oss's 90 blocks each, 6 % more than an eighth. Source: vLLM 0.33.0, ``gpt_oss.py`` and
SGLang 0.5.23, ``gpt_oss.py``, which both round up in this way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_tune.weights.checkpoint import Checkpoint

USED_FRACTION = 0.92
"""Of a GPU's memory, what an engine takes for weights, cache and its own buffers: vLLM 0.33.0's
``--gpu-memory-utilization``; SGLang and TensorRT-LLM choose about as much."""
BLOCK = 32
STEP_TOKENS = 8192
"""Tokens that one step may add to a sliding window: vLLM's ``--max-num-batched-tokens`` for a
server on a large GPU."""
_KEY_VALUE_BYTES = 2  # bf16


@dataclass(frozen=True)
class Need:
    """Memory of each GPU, in bytes.

    Attributes:
        weights: Its share of the weights.
        request: Keys and values of one request of the full context.
    """

    weights: int
    request: int

    @property
    def total(self) -> int:
        """Both together: the least that has to fit."""
        return self.weights + self.request

    def requests_in(self, memory: int) -> int:
        """Return how many full requests fit into ``memory`` bytes of a GPU beside the weights."""
        return max(0, int(memory * USED_FRACTION) - self.weights) // self.request

    def fits(self, memory: int) -> bool:
        """Return whether a GPU of ``memory`` bytes holds the weights and one full request."""
        return self.requests_in(memory) > 0


def need(
    config: Mapping[str, Any], *, weights: int, expert_weights: int, context: int, gpus: int
) -> Need:
    """Return what each of ``gpus`` GPUs needs.

    Args:
        config: The model's ``config.json``; what it does not say is gpt-oss-20b's.
        weights: Bytes of all tensors, experts included.
        expert_weights: Bytes of the experts' tensors.
        context: Tokens of one request, prompt and answer together.
        gpus: GPUs that share the model.
    """
    blocks = math.ceil(int(config.get("intermediate_size", 2880)) / BLOCK)
    share = math.ceil(blocks / gpus) / blocks
    rest = weights - expert_weights
    return Need(
        weights=math.ceil(rest / gpus + expert_weights * share),
        request=_cache_of_request(config, context, gpus),
    )


def _cache_of_request(config: Mapping[str, Any], context: int, gpus: int) -> int:
    heads = max(1, int(config.get("num_key_value_heads", 8)) // gpus)
    token = 2 * heads * int(config.get("head_dim", 64)) * _KEY_VALUE_BYTES
    layers = int(config.get("num_hidden_layers", 24))
    window = int(config.get("sliding_window") or 128)
    kinds = config.get("layer_types") or [
        "sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)
    ]
    sliding = sum(kind == "sliding_attention" for kind in kinds)
    kept = min(context, window + STEP_TOKENS)
    return token * ((len(kinds) - sliding) * context + sliding * kept)


def stored_bytes(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return the bytes of all tensors of a checkpoint, and of its experts' among them."""
    experts = sum(
        checkpoint.spec(name).nbytes for name in checkpoint.names() if ".mlp.experts." in name
    )
    return checkpoint.nbytes(), experts


def gib(count: float) -> str:
    """Return bytes in GiB, with one place behind the point."""
    return f"{count / 2**30:.1f} GiB"
