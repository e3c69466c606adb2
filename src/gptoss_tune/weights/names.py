"""Which tensors a gpt-oss checkpoint holds, from its configuration alone.

Legend of the shapes: H hidden, I intermediate, E experts, V vocabulary, D head dimension.

The same model lies on disk in two layouts. Released, the experts are MXFP4 with the input axis
packed: ``gate_up_proj_blocks [E, 2I, H/32, 16]``, ``gate_up_proj_scales [E, 2I, H/32]``. Decoded,
they are transposed into transformers' layout: ``gate_up_proj [E, H, 2I]``. Everything else has the
same name and shape in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from gptoss_tune.plan.weights import MXFP4_BLOCK

ExpertFormat = Literal["mxfp4", "bf16"]

INDEX_NAME, SINGLE_NAME = "model.safetensors.index.json", "model.safetensors"
"""Files of a checkpoint: the index of its shards, or all in one."""
EXPERT_PROJECTIONS = ("gate_up_proj", "down_proj")
ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """Return the layer a tensor belongs to, or None for the embedding, the norm and the head."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def expert_key(layer: int, projection: str) -> str:
    """Return ``model.layers.N.mlp.experts.gate_up_proj`` and the like."""
    return f"model.layers.{layer}.mlp.experts.{projection}"


def expert_shape(config: Mapping[str, Any], projection: str) -> tuple[int, int, int]:
    """Return ``(E, in, out)`` of an expert projection in transformers' layout."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    experts = config["num_local_experts"]
    return (
        (experts, hidden, 2 * inner) if projection == "gate_up_proj" else (experts, inner, hidden)
    )


def expected_shapes(
    config: Mapping[str, Any], expert_format: ExpertFormat
) -> dict[str, tuple[int, ...]]:
    """Return every tensor's shape by name, for a checkpoint with this ``config.json``."""
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        shapes.update(_layer_shapes(config, expert_format, layer))
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _layer_shapes(
    config: Mapping[str, Any], expert_format: ExpertFormat, layer: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of one decoder layer."""
    prefix = f"model.layers.{layer}"
    hidden, experts = config["hidden_size"], config["num_local_experts"]
    heads, head = config["num_attention_heads"], config["head_dim"]
    keys = config["num_key_value_heads"] * head
    linears = {
        "q_proj": (heads * head, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, heads * head),
    }
    yield f"{prefix}.input_layernorm.weight", (hidden,)
    yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
    yield f"{prefix}.self_attn.sinks", (heads,)
    for name, shape in linears.items():
        yield f"{prefix}.self_attn.{name}.weight", shape
        if config.get("attention_bias", True):
            yield f"{prefix}.self_attn.{name}.bias", shape[:1]
    yield f"{prefix}.mlp.router.weight", (experts, hidden)
    yield f"{prefix}.mlp.router.bias", (experts,)
    for projection in EXPERT_PROJECTIONS:
        key = expert_key(layer, projection)
        _, into, out = expert_shape(config, projection)
        if expert_format == "mxfp4":
            yield f"{key}_blocks", (experts, out, into // MXFP4_BLOCK, MXFP4_BLOCK // 2)
            yield f"{key}_scales", (experts, out, into // MXFP4_BLOCK)
        else:
            yield key, (experts, into, out)
        yield f"{key}_bias", (experts, out)
