"""GPU memory of adapters in vLLM: slots of one rank for every layer that could have an adapter.

Read from vLLM 0.33.0 (``vllm/lora/layers``, ``fused_moe/oracle/mxfp4.py``): the buffers are made
when the server starts, for ``--max-loras`` adapters of ``--max-lora-rank`` each, whatever the
adapters change and whatever rank they have. They hold attention, router and all experts, in the
base's 16-bit dtype. Beside packed experts they have Marlin's padded sizes, the backend that vLLM
takes for MXFP4 with adapters where none is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VLLM = "0.33.0"
"""The release whose source this, the flags and the layout of the files were read from."""

_BYTES = 2  # of a bf16 value
_MARLIN_HIDDEN, _MARLIN_INTERMEDIATE = 256, 128
_MXFP4_BLOCK = 32


def slot_bytes(
    config: Mapping[str, Any], rank: int, gpus: int = 1, *, packed: bool, by_expert: bool = False
) -> int:
    """Return the bytes on each GPU of one adapter's slot.

    Args:
        config: The base's ``config.json``.
        rank: ``--max-lora-rank``.
        gpus: GPUs that share the weights.
        packed: Whether the base's experts are MXFP4.
        by_expert: Whether whole experts are divided over the GPUs, not the rows of each.
    """
    hidden, experts = config["hidden_size"], config["num_local_experts"]
    inner = config["intermediate_size"] if by_expert else config["intermediate_size"] // gpus
    wide = hidden
    if packed:
        wide, inner = _up(hidden, _MARLIN_HIDDEN), _up(inner, _MARLIN_INTERMEDIATE)
    held = experts // gpus if by_expert else experts
    of_expert = wide + 2 * inner + inner + wide  # gate_up: A and B, down: A and B
    head = config["head_dim"]
    queries = config["num_attention_heads"] * head // gpus
    keys = max(1, config["num_key_value_heads"] // gpus) * head
    attention = (3 * hidden + queries + 2 * keys) + (queries + hidden)  # q, k, v, then o
    router = hidden + experts
    layers = config["num_hidden_layers"]
    return layers * (held * of_expert + attention + router) * rank * _BYTES


def divides_evenly(config: Mapping[str, Any], gpus: int, *, packed: bool) -> bool:
    """Return whether vLLM cuts factors and packed experts at the same rows.

    It gives each GPU whole MXFP4 blocks of 32 of a base's experts, and ``intermediate_size / gpus``
    rows of an adapter's. For gpt-oss (2880) the two are the same for 1 and 2 GPUs alone.
    """
    inner = config["intermediate_size"]
    blocks = -(-(inner // _MXFP4_BLOCK) // gpus)
    return not packed or blocks * _MXFP4_BLOCK * gpus == inner


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
