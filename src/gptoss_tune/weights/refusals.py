"""What no translation explains in a checkpoint's files: refused with its cause and the way out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights.layouts.names import ONE_BY_ONE
from gptoss_tune.weights.layouts.openai import is_openais
from gptoss_tune.weights.names import layer_of

_FACTOR = re.compile(r"\.lora_(?:[AB]|embedding_[AB]|magnitude_vector)\b")
_QUANTISED = re.compile(
    r"\.(?:absmax|nested_absmax|quant_map|quant_state\.[\w.]+|qweight|qzeros|g_idx|weight_packed"
    r"|weight_scale(?:_2|_inv)?|input_scale|input_global_scale|weight_global_scale|SCB)$"
)
_ROWS_OF_TOKENS = ("model.embed_tokens.weight", "lm_head.weight")
_LISTED = 3


def refuse_other_tensors(
    path: Path, layers: int, expected: Mapping[str, object], found: Collection[str]
) -> None:
    """Refuse a checkpoint that lacks a tensor of its configuration or holds one beside it.

    What nothing here reads may be read elsewhere: transformers passes over a tensor without a
    place, vLLM stops at it, and a layer more is another model.

    Args:
        path: The folder.
        layers: What config.json says.
        expected: Tensors by the release's names.
        found: Those of the files.

    Raises:
        CheckpointError: With what it is, and what to do.
    """
    missing = [name for name in expected if name not in found]
    extra = sorted(name for name in found if name not in expected)
    if extra:
        raise CheckpointError(f"{path}: {_why_other(path, layers, missing, extra)}")
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(expected)} tensors are missing, first "
            f"'{missing[0]}'; copy or download the checkpoint again"
        )


def _why_other(path: Path, layers: int, missing: list[str], extra: list[str]) -> str:
    """Return the cause of tensors that the configuration does not explain, and the way out."""
    shown = ", ".join(f"'{name[:90]}'" for name in extra[:_LISTED])
    shown += f" and {len(extra) - _LISTED} more" if len(extra) > _LISTED else ""
    quantised = [name for name in extra if _QUANTISED.search(name)]
    if quantised:
        return (
            f"its weights are quantised ('{quantised[0][:90]}' is among {len(quantised)} tensors "
            "of a quantiser), which config.json does not say; the values from before are not in "
            "it. Start from the checkpoint that was quantised, or from the release"
        )
    one_by_one = [name for name in extra if ONE_BY_ONE.search(f".{name}")]
    if one_by_one and missing:
        return (
            f"its experts are stored one by one under names whose order of gate and up is not "
            f"known here ('{one_by_one[0][:90]}'); known are gate_up_projs.N, down_projs.N and "
            "experts.N.gate_proj, up_proj, down_proj. Save it with one stack for each projection "
            "(transformers' save_pretrained), or start from the release"
        )
    if any(is_openais(name) for name in extra):
        return (
            f"some of its tensors are named as in OpenAI's own code and have no place in the model "
            f"of config.json ({shown}); take config.json and weights from one release"
        )
    factors = [name for name in extra if _FACTOR.search(name)]
    if factors:
        return (
            f"holds {len(factors)} factors of an adapter beside the weights, first "
            f"'{factors[0][:90]}', which programs apply or drop as they like; merge them with PEFT "
            "(merge_and_unload) and save again, or remove them from the file"
        )
    if extra == ["lm_head.weight"] and not missing:
        return (
            "config.json says tie_word_embeddings, and the files hold 'lm_head.weight' beside the "
            "embeddings; if the two are equal remove it from the file, if they are not set "
            "tie_word_embeddings to false in config.json"
        )
    deepest = max((layer_of(name) or 0 for name in extra), default=0)
    if deepest >= layers and not missing:
        return (
            f"config.json says {layers} layers, the files hold {deepest + 1} ({shown}); config and "
            "weights are of different models, take both from one source"
        )
    lacking = f"{len(missing)} tensors are missing, first '{missing[0]}', and " if missing else ""
    return (
        f"{lacking}{len(extra)} are there that config.json does not explain: {shown}; expected the "
        "names of the release, save the model again with transformers' save_pretrained or remove "
        "them from the file"
    )


def refuse_unread_files(path: Path, read: Collection[str]) -> None:
    """Refuse weights beside those that are read: some programs load them instead, or as well.

    transformers takes ``model.safetensors`` before an index, vLLM the files of the index, or every
    safetensors file where there is none.

    Args:
        path: The folder.
        read: Names of the files that are read.

    Raises:
        CheckpointError: Names both.
    """
    unread = sorted(file.name for file in path.glob("*.safetensors") if file.name not in read)
    if unread:
        raise CheckpointError(
            f"{path}: holds two sets of weights, {min(read)}{' and others' * (len(read) > 1)} and "
            f"{unread[0]}{' and others' * (len(unread) > 1)}, of which programs load one or the "
            "other; keep the files of one model and remove the rest"
        )


def wrong_shape(config: Mapping[str, Any], name: str, found: tuple[int, ...], wanted: Any) -> str:
    """Return why a tensor's shape is not the one of the configuration, and the way out."""
    got = f"'{name}' has shape {list(found)}, config.json says {list(wanted)}"
    if name in _ROWS_OF_TOKENS and found[1:] == wanted[1:]:
        vocabulary = config["vocab_size"]
        return (
            f"{got}: it has rows for {found[0]:,} tokens, vocab_size is {vocabulary:,}, as a "
            "program leaves them that pads or cuts the vocabulary; if embed_tokens and lm_head "
            f"have as many, set vocab_size to {found[0]} in config.json"
        )
    if len(found) == 3 and found == (wanted[0], wanted[2], wanted[1]):
        return (
            f"{got}: it is stored as [E, out, in]. Where a matrix is square, as down_proj of the "
            "release, nothing tells the order, so none is guessed; transpose the last two axes of "
            "both projections and save them again"
        )
    return f"{got}; config and weights are of different models"
