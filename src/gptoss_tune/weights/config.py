"""``config.json`` of a gpt-oss checkpoint: what it must say, and what it must not.

The file decides which code runs: transformers sets every key of it as an attribute, fetches a
kernel from the Hub where ``_attn_implementation`` names one (CVE-2026-4372), imports modules that
``auto_map`` names, and builds as many layers as it is told. So a key that can choose code is
refused wherever it came from, and every size is bounded before anything is built from it.

Keys that are merely unknown are kept: other tools note their version there, and the next release of
transformers has another key.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.weights.adapter_config import ADAPTER_CONFIG
from gptoss_tune.weights.gguf.file import refuse_gguf
from gptoss_tune.weights.layouts.foreign import quantised_otherwise, without_config
from gptoss_tune.weights.layouts.openai_config import in_transformers_words, is_openais_config

ARCHITECTURE = "GptOssForCausalLM"
MODEL_TYPE = "gpt_oss"
QUANTIZATION_CONFIG = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
"""``quantization_config`` of the released checkpoints."""

# The largest sizes taken, far above gpt-oss-120b: 36 layers of 128 experts, 2,880 wide.
_SIZES = {
    "hidden_size": 2**20,
    "intermediate_size": 2**20,
    "num_hidden_layers": 1024,
    "num_local_experts": 4096,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 4096,
    "vocab_size": 2**24,
}
_OPTIONAL_SIZES = {
    "num_experts_per_tok": 4096,
    "experts_per_token": 4096,
    "sliding_window": 2**30,
    "max_position_embeddings": 2**40,
    "initial_context_length": 2**40,
}
_CHOOSES_CODE = re.compile(
    r"auto_map|trust_remote_code|custom_.*|.*kernel.*|.*_implementation(?:_internal)?"
    r"|per_layer_config|attribute_map|.*_plan|__.*"
)
_KNOWN_IMPLEMENTATIONS = (None, "eager", "sdpa", "flash_attention_2", "flex_attention")
_CHOOSES_CODE_BESIDE = re.compile(r"auto_map|trust_remote_code|custom_.*|__.*")
_BESIDE = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
_QUANTIZATION_KEYS = {"quant_method", "modules_to_not_convert", "dequantize"}
_LONGEST_SHOWN = 60
# Settings of the computation and of its start: the smallest and the largest value taken. A base of
# 1 or less divides by zero in YaRN; a text or a list ends in a traceback on the way there.
_NUMBERS = {
    "rope_theta": (1.001, 1e12),
    "rms_norm_eps": (0.0, 1.0),
    "initializer_range": (0.0, 1e3),
    "attention_dropout": (0.0, 0.999),
    "swiglu_alpha": (1e-6, 1e3),
    "swiglu_limit": (1e-6, 1e9),
    "router_aux_loss_coef": (0.0, 1e6),
}
_ROTARY_NUMBERS = {
    "rope_theta": _NUMBERS["rope_theta"],
    "factor": (1.0, 1e6),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
    "original_max_position_embeddings": (1, 2**40),
    "attention_factor": (1e-6, 1e6),
    "mscale": (1e-6, 1e6),
    "mscale_all_dim": (1e-6, 1e6),
    "partial_rotary_factor": (1.0, 1.0),
}
_NEVER_NULL = ("rope_theta", "partial_rotary_factor")
_ROTARY_TYPES = ("yarn", "default")
_SWITCHES = ("attention_bias", "tie_word_embeddings", "use_cache", "output_router_logits")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
_LAYER_TYPES = ("sliding_attention", "full_attention")


def read_config(path: Path, *, openai: bool = False) -> dict[str, Any]:
    """Return ``config.json`` of the checkpoint folder ``path``.

    Args:
        path: The folder.
        openai: Take OpenAI's own layout too, said in transformers' words.

    Raises:
        CheckpointError: Missing, not strict JSON, another architecture, a size missing or absurd, a
            setting of another kind or out of its range, a key that chooses code, or a quantisation
            other than MXFP4.
    """
    file = path / "config.json"
    if not os.path.lexists(file):
        refuse_gguf(path)
        raise CheckpointError(without_config(path))
    config = read_object(inside(path, file.name, f"{path}: has"))
    if is_openais_config(config):
        if not openai:
            raise CheckpointError(_openais_layout(path))
        config = in_transformers_words(file, config)
    found = config.get("architectures")
    inner = config.get("text_config")
    if isinstance(inner, dict) and inner.get("model_type") == MODEL_TYPE:
        raise CheckpointError(
            f"{file}: describes {_short(found)} with a gpt-oss inside it (text_config); expected "
            f"['{ARCHITECTURE}'] alone, save its language model by itself (transformers: "
            "model.language_model.save_pretrained) and use that"
        )
    if found != [ARCHITECTURE]:
        raise CheckpointError(
            f"{file}: architectures is {_short(found)}; expected ['{ARCHITECTURE}']"
        )
    if config.get("model_type", MODEL_TYPE) != MODEL_TYPE:
        raise CheckpointError(
            f"{file}: model_type is {_short(config['model_type'])}; expected '{MODEL_TYPE}'"
        )
    if config.get("transformers_weights"):
        raise CheckpointError(
            f"{file}: transformers_weights is {_short(config['transformers_weights'])}, which "
            "transformers loads instead of the files that everything else reads; remove the key"
        )
    _refuse_code(file, config)
    _check_sizes(file, config)
    _check_settings(file, config)
    _check_quantization(file, config.get("quantization_config"))
    return config


def _openais_layout(path: Path) -> str:
    """Return what to do with a folder of OpenAI's own layout."""
    text = (
        f"{path}: is in OpenAI's own layout (original/ of a release); write it in transformers' "
        f"with `gptoss-tune convert {shlex.quote(str(path))} --out DIR` and use that"
    )
    above = path.absolute().parent
    if (above / "config.json").is_file():
        text += f", or use the folder above it, {above}, which holds the same weights"
    return text


def check_companions(path: Path) -> None:
    """Refuse what lies beside the weights and has transformers run or load something else.

    Raises:
        CheckpointError: ``tokenizer_config.json`` or its like is no strict JSON or chooses code;
            an ``adapter_config.json`` would have transformers load the base that it names.
    """
    for name in _BESIDE:
        if not (path / name).exists():
            continue
        file = inside(path, name, f"{path}: has")
        for key, value in read_object(file).items():
            if _CHOOSES_CODE_BESIDE.fullmatch(key):
                raise CheckpointError(
                    f"{file}: {key[:60]!a} is {_short(value)}, which chooses code to run; gpt-oss "
                    "needs none, take the file from the release"
                )
    if (path / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{path}: holds {ADAPTER_CONFIG} beside whole weights; transformers would load the "
            "base that it names instead of these, move it to a folder of its own"
        )


def _short(value: object) -> str:
    """Return a stranger's value for a message: printable, and cut."""
    text = ascii(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _refuse_code(file: Path, config: dict[str, Any]) -> None:
    for key, value in config.items():
        if not key.isprintable() or _CHOOSES_CODE.fullmatch(key):
            if key.endswith("_implementation") and value in _KNOWN_IMPLEMENTATIONS:
                continue
            raise CheckpointError(
                f"{file}: {key[:60]!a} is {_short(value)}, which chooses code to run; a "
                "checkpoint of gpt-oss needs none, remove the key if you trust the rest"
            )


def _check_sizes(file: Path, config: dict[str, Any]) -> None:
    there = {key for key, value in config.items() if value is not None}
    wanted = {key: largest for key, largest in _OPTIONAL_SIZES.items() if key in there}
    for key, largest in {**_SIZES, **wanted}.items():
        value = config.get(key)
        if type(value) is not int:
            raise CheckpointError(f"{file}: {key} is {_short(value)}; expected a whole number")
        if not 1 <= value <= largest:
            raise CheckpointError(f"{file}: {key} is {_short(value)}; expected 1 to {largest:,}")
    chosen = config.get("num_experts_per_tok") or 1
    if chosen > config["num_local_experts"]:
        raise CheckpointError(
            f"{file}: num_experts_per_tok is {chosen}, of {config['num_local_experts']} experts; "
            "restore the released file"
        )
    layers, kinds = config["num_hidden_layers"], config.get("layer_types")
    if kinds is not None and (
        not isinstance(kinds, list)
        or len(kinds) != layers
        or any(kind not in _LAYER_TYPES for kind in kinds)
    ):
        raise CheckpointError(
            f"{file}: layer_types is {_short(kinds)}; expected {layers} words, each "
            f"{' or '.join(_LAYER_TYPES)}"
        )


def _check_settings(file: Path, config: dict[str, Any]) -> None:
    """Refuse what transformers would trip over while it builds the model, or compute nothing with.

    An absent or null setting is transformers' default; other keys are nobody's business here.
    """
    _check_numbers(file, config, _NUMBERS, "")
    for key in _SWITCHES:
        if not isinstance(config.get(key, False), bool):
            raise CheckpointError(f"{file}: {key} is {_short(config[key])}; expected true or false")
    for key in _TOKENS:
        value = config.get(key)
        for token in value if isinstance(value, list) and key == "eos_token_id" else [value]:
            if token is not None and not (type(token) is int and 0 <= token < config["vocab_size"]):
                raise CheckpointError(
                    f"{file}: {key} is {_short(value)}; expected a token from 0 to "
                    f"{config['vocab_size'] - 1:,}, as vocab_size has it"
                )
    # transformers takes num_experts for num_local_experts, whichever of the two comes last.
    fixed = {"hidden_act": "silu", "num_experts": config["num_local_experts"]}
    for key, wanted in fixed.items():
        if config.get(key, wanted) != wanted or isinstance(config.get(key), bool):
            raise CheckpointError(f"{file}: {key} is {_short(config[key])}; expected {wanted!r}")
    for key in ("dtype", "torch_dtype"):
        if not isinstance(config.get(key, ""), str | None):
            raise CheckpointError(f"{file}: {key} is {_short(config[key])}; expected 'bfloat16'")
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key) is not None:
            _check_rotary(file, config[key], key)


def _check_rotary(file: Path, rotary: Any, key: str) -> None:
    if not isinstance(rotary, dict):
        raise CheckpointError(f"{file}: {key} is {_short(rotary)}; expected a mapping or null")
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind not in _ROTARY_TYPES:
        raise CheckpointError(
            f"{file}: {key}.rope_type is {_short(kind)}; expected {' or '.join(_ROTARY_TYPES)}, as "
            "gpt-oss was trained"
        )
    _check_numbers(file, rotary, _ROTARY_NUMBERS, f"{key}.")
    if kind == "yarn" and rotary.get("factor") is None:
        raise CheckpointError(f"{file}: {key}.factor is missing; expected a number, as released 32")
    if not isinstance(rotary.get("truncate", False), bool):
        raise CheckpointError(
            f"{file}: {key}.truncate is {_short(rotary['truncate'])}; expected true or false"
        )


def _check_numbers(
    file: Path, values: dict[str, Any], ranges: dict[str, tuple[float, float]], where: str
) -> None:
    for key, (low, high) in ranges.items():
        value = values.get(key, low)
        if value is None:
            taken = key not in _NEVER_NULL
        else:
            taken = type(value) in (int, float) and low <= value <= high
        if not taken:
            raise CheckpointError(
                f"{file}: {where}{key} is {_short(value)}; expected a number from {low:g} to "
                f"{high:g}, restore the released file"
            )


def _check_quantization(file: Path, quantization: Any) -> None:
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if not isinstance(quantization, dict) or method != "mxfp4":
        raise CheckpointError(f"{file}: {quantised_otherwise(_short(method), quantization)}")
    unknown = sorted(quantization.keys() - _QUANTIZATION_KEYS)
    if unknown:
        raise CheckpointError(
            f"{file}: quantization_config has {unknown[0][:60]!a}; expected "
            f"{', '.join(sorted(_QUANTIZATION_KEYS))}: servers choose their loader by this section"
        )
