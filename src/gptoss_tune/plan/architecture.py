"""Model dimensions of gpt-oss, from its ``config.json`` or from its name.

The released models, safeguard among them, are known here by their sizes, so that a plan needs
neither a download nor a network. Anything else has to be a folder with a ``config.json``. Asking
the Hub for a configuration was the alternative: a plan would then be able to fail where a checked
recipe cannot.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.files.hub_cache import snapshot_of
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.recipe.schema.value_types import is_hub_name

_LARGEST_SIZE = 2**30
AttentionKind = Literal["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Architecture:
    """Sizes of one gpt-oss model.

    gpt-oss-20b: 24 layers of 32 experts, 4 for each token; hidden and intermediate size are both
    2,880, which hides a wrong order of the two.

    Attributes:
        layer_types: One entry per layer: windowed or full attention.
        hidden: H.
        intermediate: I, of one expert.
        experts: E, of one layer.
        experts_per_token: K.
        heads: Query heads.
        key_value_heads: Key-value heads.
        head_dim: Size of a head.
        vocabulary: V, rows of the embeddings and of ``lm_head``.
        window: Keys that a windowed layer sees.
        packed: The checkpoint stores its experts in MXFP4.
    """

    layer_types: tuple[AttentionKind, ...]
    hidden: int
    intermediate: int
    experts: int
    experts_per_token: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    window: int
    packed: bool

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.layer_types)

    @property
    def query_size(self) -> int:
        """Outputs of ``q_proj``, inputs of ``o_proj``."""
        return self.heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Outputs of ``k_proj`` and of ``v_proj``."""
        return self.key_value_heads * self.head_dim

    @property
    def attention_shapes(self) -> dict[str, tuple[int, int]]:
        """``(in, out)`` of the attention projections."""
        return {
            "q_proj": (self.hidden, self.query_size),
            "k_proj": (self.hidden, self.key_size),
            "v_proj": (self.hidden, self.key_size),
            "o_proj": (self.query_size, self.hidden),
        }

    @property
    def expert_shapes(self) -> dict[str, tuple[int, int]]:
        """``(in, out)`` of one expert's two weights."""
        return {
            "gate_up_proj": (self.hidden, 2 * self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }


def _released(layers: int, experts: int) -> Architecture:
    kinds: tuple[AttentionKind, AttentionKind] = ("sliding_attention", "full_attention")
    return Architecture(
        layer_types=tuple(kinds[layer % 2] for layer in range(layers)),
        hidden=2880,
        intermediate=2880,
        experts=experts,
        experts_per_token=4,
        heads=64,
        key_value_heads=8,
        head_dim=64,
        vocabulary=201_088,
        window=128,
        packed=True,
    )


RELEASED = {
    "openai/gpt-oss-20b": _released(layers=24, experts=32),
    "openai/gpt-oss-120b": _released(layers=36, experts=128),
    "openai/gpt-oss-safeguard-20b": _released(layers=24, experts=32),
    "openai/gpt-oss-safeguard-120b": _released(layers=36, experts=128),
}
"""Sizes of the released models by their names on the Hub."""


def smaller_release(name_or_path: str) -> str:
    """Return the smallest released model of a base's kind: a classifier's is a classifier.

    ``openai/gpt-oss-safeguard-120b`` has ``openai/gpt-oss-safeguard-20b``; so has a folder that is
    called as it is.
    """
    last = Path(name_or_path).name.lower()
    return f"openai/gpt-oss-{'safeguard-' if 'safeguard' in last else ''}20b"


def architecture_of(name_or_path: str) -> Architecture:
    """Return the sizes of a base, without reading a weight.

    Raises:
        RecipeError: Neither a folder nor a released model.
        CheckpointError: The folder's ``config.json`` is missing, unreadable or not of gpt-oss.
    """
    folder = Path(os.path.expanduser(name_or_path))
    if folder.is_dir():
        return read_architecture(snapshot_of(folder) / "config.json")
    if name_or_path in RELEASED:
        return RELEASED[name_or_path]
    if folder.exists():
        raise CheckpointError(f"{folder}: is a file; name the folder that holds config.json")
    if is_hub_name(name_or_path):
        raise RecipeError(
            f"model.name_or_path: {name_or_path!r} is not one of {', '.join(RELEASED)}, and a plan "
            "asks nobody; name a folder that holds its config.json"
        )
    raise RecipeError(
        f"model.name_or_path: no folder {name_or_path!r}; name a folder with config.json, or one "
        f"of {', '.join(RELEASED)}; `gptoss-tune tiny {name_or_path}` makes a tiny one"
    )


def read_architecture(path: Path) -> Architecture:
    """Return the sizes in a ``config.json``.

    Raises:
        CheckpointError: The file is missing, unreadable, or lacks a size of gpt-oss.
    """
    try:
        config = read_object(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: {error.strerror}; name a checkpoint's folder") from error
    if "num_experts" in config and "architectures" not in config:
        convert = f"gptoss-tune convert {shlex.quote(str(path.parent))} --out DIR"
        raise CheckpointError(
            f"{path}: is in OpenAI's own layout (original/ of a release); write it in "
            f"transformers' with `{convert}` and use that"
        )
    if config.get("model_type") != "gpt_oss":
        raise CheckpointError(f"{path}: not the configuration of a gpt-oss model; name such a base")
    kinds = config.get("layer_types")
    known = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or not kinds or any(kind not in known for kind in kinds):
        raise CheckpointError(
            f"{path}: layer_types is {ascii(kinds)[:60]}; expected a list of sliding_attention and "
            "full_attention, one per layer"
        )
    layers = _size(config, "num_hidden_layers", path)
    if layers != len(kinds):
        raise CheckpointError(
            f"{path}: num_hidden_layers is {layers} and layer_types has {len(kinds)} entries; "
            "restore the released file"
        )
    return Architecture(
        layer_types=tuple(kinds),
        hidden=_size(config, "hidden_size", path),
        intermediate=_size(config, "intermediate_size", path),
        experts=_size(config, "num_local_experts", path),
        experts_per_token=_size(config, "num_experts_per_tok", path),
        heads=_size(config, "num_attention_heads", path),
        key_value_heads=_size(config, "num_key_value_heads", path),
        head_dim=_size(config, "head_dim", path),
        vocabulary=_size(config, "vocab_size", path),
        window=_size(config, "sliding_window", path),
        packed=_is_packed(config.get("quantization_config")),
    )


def _is_packed(quantization: object) -> bool:
    return isinstance(quantization, dict) and quantization.get("quant_method") == "mxfp4"


def _size(config: dict[str, Any], key: str, path: Path) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= _LARGEST_SIZE:
        shown = ascii(value)[:60]
        raise CheckpointError(f"{path}: {key} is {shown}; expected a whole number above 0")
    return value
