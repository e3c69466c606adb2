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


def cut_alike(gpus: int, *, packed: bool) -> bool:
    """Return whether vLLM cuts the rows of an adapter's factors where it cuts the base's experts.

    It gives each GPU whole MXFP4 blocks of 32 rows: of gpt-oss's 2880 that is 1440 for two GPUs and
    736 for four. Of an adapter's factors 0.33.0 gives ``2880 / GPUs`` (720 for four), and 0.31.0
    Marlin's padded size (1536 for two, 768 for four). Dense experts are cut evenly, as factors are.
    """
    return gpus == 1 or not packed


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
