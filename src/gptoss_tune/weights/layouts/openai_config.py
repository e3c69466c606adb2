"""``config.json`` of OpenAI's own layout, said in transformers' words; no torch.

OpenAI's code has 16 settings; the others are constants in it, and here the values that the
release has for them. Its rotary embedding scales the frequencies by YaRN between
``rope_ntk_alpha`` and ``rope_ntk_beta`` turns, without rounding the bounds, when the factor is
above 1.

See openai/gpt-oss, gpt_oss/torch/model.py, ``ModelConfig`` and ``RotaryEmbedding``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.harmony.vocabulary import ENDOFTEXT, RETURN

_SAME = (
    "experts_per_token",
    "head_dim",
    "hidden_size",
    "initial_context_length",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rope_theta",
    "sliding_window",
    "swiglu_limit",
    "vocab_size",
)
_OTHER = ("num_experts", "rope_scaling_factor", "rope_ntk_alpha", "rope_ntk_beta")
_NUMBERS = ("rope_scaling_factor", "initial_context_length", "num_hidden_layers")
_MOST_LAYERS = 1024
_CONSTANTS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "eos_token_id": RETURN,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "model_type": "gpt_oss",
    "output_router_logits": False,
    "pad_token_id": ENDOFTEXT,
    "rms_norm_eps": 1e-5,
    "router_aux_loss_coef": 0.9,
    "tie_word_embeddings": False,
    "use_cache": True,
}


def is_openais_config(config: Mapping[str, Any]) -> bool:
    """Return whether a ``config.json`` is of OpenAI's own layout."""
    return config.get("architectures") is None and "num_experts" in config


def in_transformers_words(file: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of OpenAI's ``config.json`` as transformers reads them.

    Args:
        file: Where it stands, for messages.
        config: Its content; sizes are checked by who reads the result.

    Raises:
        CheckpointError: A setting is missing, unknown, or no number.
    """
    known = {*_SAME, *_OTHER}
    if known != set(config):
        missing, unknown = sorted(known - set(config)), sorted(set(config) - known)
        said = [f"has no {key}" for key in missing[:1]]
        said += [f"has {key[:60]!a}" for key in unknown[:1]]
        raise CheckpointError(
            f"{file}: {' and '.join(said)}; expected the {len(known)} settings of OpenAI's own "
            "code, take the file from original/ of the release"
        )
    for key in _NUMBERS:
        if type(config[key]) not in (int, float) or not 0 < config[key] <= 2**40:
            raise CheckpointError(
                f"{file}: {key} is {ascii(config[key])[:60]}; expected a number above 0, take the "
                "file from original/ of the release"
            )
    factor, context = float(config["rope_scaling_factor"]), config["initial_context_length"]
    kinds = ("sliding_attention", "full_attention")
    layers = min(int(config["num_hidden_layers"]), _MOST_LAYERS)
    yarn = {
        "beta_fast": config["rope_ntk_beta"],
        "beta_slow": config["rope_ntk_alpha"],
        "factor": factor,
        "original_max_position_embeddings": context,
        "rope_type": "yarn",
        "truncate": False,
    }
    return {
        **_CONSTANTS,
        **{key: config[key] for key in _SAME},
        "layer_types": [kinds[layer % 2] for layer in range(layers)],
        "max_position_embeddings": int(context * factor),
        "num_experts_per_tok": config["experts_per_token"],
        "num_local_experts": config["num_experts"],
        "rope_scaling": yarn if factor > 1 else {"rope_type": "default"},
    }
