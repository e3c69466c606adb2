"""A tiny gpt-oss in exactly the released layout, to try and to test the whole chain on a laptop.

The released checkpoint's tensor names, dtypes, MXFP4 packing, configuration keys, special tokens
and chat format, with a hidden size of 64. Two things are unlike the release on purpose: the hidden
and the intermediate size differ, because ``down_proj`` of the real model is square and hides a
wrong transpose, and the weights are random but scaled (embeddings 1, ``lm_head`` 0.25, the rest
0.08) so that the logits of a trained adapter can become sharp; at the usual 0.02 a frozen random
base can hardly be taught anything.

The rejected alternative is a small tokenizer to match the small model: it would make the files
quicker to write and leave untested what breaks most often, the special tokens and their ids.
"""

from __future__ import annotations

import base64
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from gptoss_kernels.mxfp4 import dequantize_reference, quantize_reference
from torch import Tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.atomic import staged, to_json
from gptoss_tune.harmony.tokenizer_file import SPLIT_PATTERN
from gptoss_tune.harmony.vocabulary import (
    CALL,
    ENDOFTEXT,
    NAMED_SPECIAL_TOKENS,
    ORDINARY_TOKENS,
    RETURN,
    STARTOFTEXT,
    VOCABULARY_SIZE,
)
from gptoss_tune.shipped import shipped
from gptoss_tune.weights.config import QUANTIZATION_CONFIG
from gptoss_tune.weights.names import INDEX_NAME, MXFP4_BLOCK
from gptoss_tune.weights.safetensors_file import TensorSpec
from gptoss_tune.weights.write import (
    MAX_SHARD_SIZE,
    index_json,
    plan_shards,
    write_shard,
)

LAST_SPECIAL_ID = 200_018
_ENDOFPROMPT = "<|endofprompt|>"
"""Name of the last one in o200k_base."""
_EMBEDDING_STD, _LM_HEAD_STD, _STD = 1.0, 0.25, 0.08
_HEAD_DIM = 64

_RELEASED_SETTINGS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": RETURN,
    "head_dim": _HEAD_DIM,
    "hidden_act": "silu",
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "max_position_embeddings": 131_072,
    "model_type": "gpt_oss",
    "output_router_logits": False,
    "pad_token_id": ENDOFTEXT,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150_000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": VOCABULARY_SIZE,
}


def tiny_config(
    *,
    layers: int = 4,
    experts: int = 8,
    hidden: int = 64,
    intermediate: int = 96,
    heads: int = 4,
    key_value_heads: int = 2,
    format: Literal["mxfp4", "bf16"] = "mxfp4",
) -> dict[str, Any]:
    """Return ``config.json`` of a small model with the keys of the released one.

    Raises:
        CheckpointError: A size is below one, or not divisible by what it must be divisible by.
    """
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": key_value_heads,
        "num_local_experts": experts,
    }
    for name, size in sizes.items():
        if size < 1:
            raise CheckpointError(f"{name} is {size}; expected at least 1")
    _check_multiple("hidden_size", hidden, MXFP4_BLOCK)
    _check_multiple("intermediate_size", intermediate, MXFP4_BLOCK)
    _check_multiple("num_attention_heads", heads, key_value_heads)
    kinds = ("sliding_attention", "full_attention")
    storage: dict[str, Any] = (
        {"quantization_config": QUANTIZATION_CONFIG}
        if format == "mxfp4"
        else {"torch_dtype": "bfloat16"}
    )
    return {
        **_RELEASED_SETTINGS,
        **sizes,
        **storage,
        "experts_per_token": min(4, experts),
        "layer_types": [kinds[i % 2] for i in range(layers)],
        "num_experts_per_tok": min(4, experts),
    }


def _check_multiple(name: str, size: int, divisor: int) -> None:
    if size % divisor:
        raise CheckpointError(f"{name} is {size}; expected a multiple of {divisor}")


def tiny_checkpoint(
    out: str | Path,
    *,
    seed: int = 0,
    layers: int = 4,
    experts: int = 8,
    hidden: int = 64,
    intermediate: int = 96,
    format: Literal["mxfp4", "bf16"] = "mxfp4",
    max_shard_size: int = MAX_SHARD_SIZE,
) -> Path:
    """Write a random gpt-oss checkpoint to the new folder ``out``; same arguments, same bytes.

    ``format="bf16"`` holds the decoded values of the MXFP4 checkpoint of the same seed: the two are
    one model.

    Args:
        out: Folder to create; it must not exist or be empty.
        seed: Seed of all weights.
        layers: Decoder layers; sliding and full attention alternate.
        experts: Experts of each layer, of which at most four are chosen for a token.
        hidden: H, a multiple of 32.
        intermediate: I, a multiple of 32.
        format: Layout of the experts.
        max_shard_size: Bytes of one file at most; a small value gives a sharded checkpoint.

    Returns:
        ``out``.

    Raises:
        CheckpointError: A size is impossible, or ``out`` holds something already.
        MachineError: The disk is full or read-only.
    """
    out = Path(out)
    config = tiny_config(
        layers=layers, experts=experts, hidden=hidden, intermediate=intermediate, format=format
    )
    weights = dict(_weights(config, seed, packed=format == "mxfp4"))
    specs = (TensorSpec(n, t.dtype, tuple(t.shape)) for n, t in weights.items())
    shards = plan_shards(specs, max_shard_size)
    with staged(out) as folder:
        for shard in shards:
            write_shard(folder, shard, ((spec.name, weights[spec.name]) for spec in shard.specs))
        if index := index_json(shards):
            (folder / INDEX_NAME).write_text(index, encoding="utf-8")
        (folder / "config.json").write_text(to_json(config), encoding="utf-8")
        _write_tokenizer_files(folder)
    return out


def _weights(config: dict[str, Any], seed: int, *, packed: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the checkpoint in the order of the model."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    experts, head = config["num_local_experts"], config["head_dim"]
    queries = config["num_attention_heads"] * head
    keys = config["num_key_value_heads"] * head

    def normal(*shape: int, std: float = _STD) -> Tensor:
        return (torch.randn(shape, generator=generator) * std).bfloat16()

    def expert_weight(name: str, out: int, into: int) -> Iterator[tuple[str, Tensor]]:
        each = [
            quantize_reference(torch.randn((out, into), generator=generator) * _STD)
            for _ in range(experts)
        ]
        blocks = torch.stack([expert.blocks for expert in each])
        scales = torch.stack([expert.scales for expert in each])
        if packed:
            yield f"{name}_blocks", blocks
            yield f"{name}_scales", scales
        else:
            yield name, dequantize_reference(blocks, scales).transpose(1, 2).contiguous()

    yield "model.embed_tokens.weight", normal(VOCABULARY_SIZE, hidden, std=_EMBEDDING_STD)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", torch.ones(hidden, dtype=torch.bfloat16)
        for name, out, into in (
            ("q", queries, hidden),
            ("k", keys, hidden),
            ("v", keys, hidden),
            ("o", hidden, queries),
        ):
            yield f"{prefix}.self_attn.{name}_proj.weight", normal(out, into)
            yield f"{prefix}.self_attn.{name}_proj.bias", normal(out)
        yield f"{prefix}.self_attn.sinks", normal(config["num_attention_heads"])
        yield f"{prefix}.post_attention_layernorm.weight", torch.ones(hidden, dtype=torch.bfloat16)
        yield f"{prefix}.mlp.router.weight", normal(experts, hidden)
        yield f"{prefix}.mlp.router.bias", normal(experts)
        yield from expert_weight(f"{prefix}.mlp.experts.gate_up_proj", 2 * inner, hidden)
        yield f"{prefix}.mlp.experts.gate_up_proj_bias", normal(experts, 2 * inner)
        yield from expert_weight(f"{prefix}.mlp.experts.down_proj", hidden, inner)
        yield f"{prefix}.mlp.experts.down_proj_bias", normal(experts, hidden)
    yield "model.norm.weight", torch.ones(hidden, dtype=torch.bfloat16)
    yield "lm_head.weight", normal(VOCABULARY_SIZE, hidden, std=_LM_HEAD_STD)


def special_tokens() -> dict[str, int]:
    """Return the special tokens of the released tokenizer with their ids, reserved ones included.

    The embedding has rows up to 201,087, which no token of the released files names; id 200018 has
    the name it has in o200k_base, where openai-harmony calls it reserved.
    """
    names = {number: name for name, number in NAMED_SPECIAL_TOKENS.items()}
    names[LAST_SPECIAL_ID] = _ENDOFPROMPT
    return {
        names.get(i, f"<|reserved_{i}|>"): i for i in range(ORDINARY_TOKENS, LAST_SPECIAL_ID + 1)
    }


@functools.cache
def tokenizer_json() -> bytes:
    """Return ``tokenizer.json`` of o200k_harmony, built once per process from the vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    vocab, merges = _vocab_and_merges(shipped("data") / "vocab" / "o200k_base.tiktoken")
    tokenizer = Tokenizer(BPE(vocab, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokens = [AddedToken(token, normalized=False, special=True) for token in special_tokens()]
    tokenizer.add_special_tokens(tokens)
    return tokenizer.to_str().encode()


def _vocab_and_merges(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return byte-level BPE's vocabulary and merges from ranks of one ``base64 rank`` a line.

    A merge is every way to join two tokens into a third, in the order of the third's rank.
    """
    ranks = {}
    for line in path.read_bytes().splitlines():
        encoded, rank = line.split()
        ranks[base64.b64decode(encoded)] = int(rank)
    letters = _byte_letters()
    text = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [(a, b) for a, b in splits if a in ranks and b in ranks]
        pairs.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges.extend((text[a], text[b]) for a, b in pairs)
    return {text[token]: rank for token, rank in ranks.items()}, merges


def _byte_letters() -> list[str]:
    """Return the printable letter that stands for each byte in byte-level BPE (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


def _write_tokenizer_files(folder: Path) -> None:
    """Write tokenizer, chat template, generation settings and licence."""
    names = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
    }
    described = {
        str(i): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token, i in special_tokens().items()
    }
    settings = {
        **names,
        "added_tokens_decoder": described,
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {},
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131_072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {
        "bos_token_id": STARTOFTEXT,
        "do_sample": True,
        "eos_token_id": [RETURN, ENDOFTEXT, CALL],
        "pad_token_id": ENDOFTEXT,
    }
    (folder / "tokenizer.json").write_bytes(tokenizer_json())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(to_json(names), encoding="utf-8")
    (folder / "generation_config.json").write_text(to_json(generation), encoding="utf-8")
    for name in ("chat_template.jinja", "LICENSE"):
        shutil.copyfile(shipped("data") / "tiny_checkpoint" / name, folder / name)
