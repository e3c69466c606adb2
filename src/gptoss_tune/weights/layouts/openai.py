"""The layout of OpenAI's own code, in the folder ``original/`` of the release.

The experts are the same bytes under other names: ``block.N.mlp.mlp1_weight.blocks``
``[E, 2I, H/32, 16]`` with gate and up alternating, as in transformers' layout. Query, key and value
are one matrix ``[(heads + 2 key_value_heads) D, H]``, whose rows are cut where they lie. Dense
experts, where someone unpacked them, are ``mlp1_weight [E, 2I, H]``: the other order of the axes.

See openai/gpt-oss, gpt_oss/torch/model.py and weights.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gptoss_tune.weights.layouts.tensors import TensorEntry

_NAME = re.compile(r"block\.\d+\.|embedding\.|unembedding\.|norm\.scale$")
_OUTSIDE = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
}
_BLOCK = re.compile(r"block\.(\d+)\.(.+)")
_INSIDE = {
    "attn.norm.scale": "input_layernorm.weight",
    "attn.out.weight": "self_attn.o_proj.weight",
    "attn.out.bias": "self_attn.o_proj.bias",
    "attn.sinks": "self_attn.sinks",
    "mlp.norm.scale": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.router.weight",
    "mlp.gate.bias": "mlp.router.bias",
    "mlp.mlp1_weight.blocks": "mlp.experts.gate_up_proj_blocks",
    "mlp.mlp1_weight.scales": "mlp.experts.gate_up_proj_scales",
    "mlp.mlp1_bias": "mlp.experts.gate_up_proj_bias",
    "mlp.mlp2_weight.blocks": "mlp.experts.down_proj_blocks",
    "mlp.mlp2_weight.scales": "mlp.experts.down_proj_scales",
    "mlp.mlp2_bias": "mlp.experts.down_proj_bias",
}
_DENSE = {
    "mlp.mlp1_weight": "mlp.experts.gate_up_proj",
    "mlp.mlp2_weight": "mlp.experts.down_proj",
}
_QKV = re.compile(r"attn\.qkv\.(weight|bias)")


def is_openais(name: str) -> bool:
    """Return whether a tensor is named as in OpenAI's own code."""
    return _NAME.match(name) is not None


def openai_name(name: str) -> str:
    """Return the release's name of a tensor that is there as a whole; else its own."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _OUTSIDE.get(name, name)
    return f"model.layers.{block[1]}.{_INSIDE[block[2]]}" if block[2] in _INSIDE else name


def dense_experts(name: str) -> str | None:
    """Return the release's name of a dense stack ``[E, out, in]``; ``None``: it is none."""
    block = _BLOCK.fullmatch(name)
    if block is None or block[2] not in _DENSE:
        return None
    return f"model.layers.{block[1]}.{_DENSE[block[2]]}"


def query_key_value(
    config: Mapping[str, Any], entry: TensorEntry
) -> Iterator[tuple[str, TensorEntry]]:
    """Yield query, key and value of a fused tensor as parts of its bytes; nothing of another.

    A tensor with other rows than the configuration says is left whole, to be refused by its name.
    """
    block = _BLOCK.fullmatch(entry.spec.name)
    kind = _QKV.fullmatch(block[2]) if block else None
    if block is None or kind is None:
        return
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    if not entry.spec.shape or entry.spec.shape[0] != queries + 2 * keys:
        return
    start = 0
    for projection, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        name = f"model.layers.{block[1]}.self_attn.{projection}.{kind[1]}"
        yield name, entry.rows(name, start, start + rows)
        start += rows
