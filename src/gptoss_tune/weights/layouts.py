"""Checkpoints whose tensors carry other names than the release's: read, or called what they are.

Programs that save a model leave their wrappers in the names (``_orig_mod.``, ``module.``,
``language_model.``), leave the ``model.`` out, or keep the name of a packed tensor for a dense one:
transformers 5.5.2 and later, after ``Mxfp4Config(dequantize=True)``, write bf16 values
``[E, in, out]`` as ``gate_up_proj_blocks``. Where the values are the release's and only names
differ, the names are translated when the file is opened. Where experts lie one by one, or in the
order of OpenAI's own code, that would be a conversion: it is said what the layout is and what to
use instead.

A program that loads the folder by itself does not translate. Who hands a folder on to one asks
``Checkpoint.require_released_names`` first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights.names import layer_of
from gptoss_tune.weights.safetensors_file import SafetensorsFile, TensorSpec

_WRAPPERS = {
    "_orig_mod",
    "module",
    "base_model",
    "language_model",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}
_INSIDE_MODEL = {"layers", "embed_tokens", "norm"}
_PACKED_NAME = re.compile(r"(.*\.experts\.(?:gate_up_proj|down_proj))_blocks")
ONE_BY_ONE = re.compile(r"\.experts\.(?:\d+\.|(?:gate_up_projs|down_projs|gate_projs|up_projs)\.)")
_OPENAI = re.compile(r"(?:block\.\d+\.|embedding\.|unembedding\.)")
_FACTOR = re.compile(r"\.lora_(?:[AB]|embedding_[AB]|magnitude_vector)\b")
_LISTED = 3


def released_names(path: Path, files: Iterable[SafetensorsFile]) -> bool:
    """Give the tensors of ``files`` the release's names; return whether any had another.

    Raises:
        CheckpointError: Two tensors mean the same one.
    """
    seen: dict[str, str] = {}
    renamed = False
    for file in files:
        names = {name: released_name(entry.spec) for name, entry in file.entries.items()}
        for stored, name in names.items():
            if name in seen:
                raise CheckpointError(
                    f"{path}: '{seen[name]}' and '{stored}' are both '{name}'; the folder holds "
                    "two models, keep the files of one"
                )
            seen[name] = stored
        if any(stored != name for stored, name in names.items()):
            file.rename(names)
            renamed = True
    return renamed


def released_name(spec: TensorSpec) -> str:
    """Return the release's name of a tensor, by its stored name and dtype."""
    name = without_wrappers(spec.name).replace(".mlp.router.linear.", ".mlp.router.")
    packed = _PACKED_NAME.fullmatch(name)
    return packed[1] if packed and spec.dtype.is_floating_point else name


def without_wrappers(name: str) -> str:
    """Return a tensor's or module's name without the wrappers of the program that saved it.

    ``module._orig_mod.layers.0.mlp`` is ``model.layers.0.mlp``, and so is PEFT's
    ``base_model.model.model.layers.0.mlp``.
    """
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while parts[:1] == ["model"]:
        del parts[0]
    if parts and parts[0] in _INSIDE_MODEL:
        parts.insert(0, "model")
    return ".".join(parts)


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
    one_by_one = [name for name in extra if ONE_BY_ONE.search(f".{name}")]
    if one_by_one and missing:
        return (
            f"its experts are stored one by one ('{one_by_one[0][:90]}'), as Unsloth's 4-bit "
            "loading lays them out; expected one stack for each projection. Save it stacked "
            "(Unsloth: save_pretrained_merged with save_method='merged_16bit'), or start from the "
            "release"
        )
    if any(_OPENAI.match(name) for name in extra):
        return (
            f"its tensors are named as in OpenAI's own code ({shown}), the layout of original/ in "
            "the release; use the release's folder itself, which has the same weights in "
            "transformers' layout"
        )
    factors = [name for name in extra if _FACTOR.search(name)]
    if factors:
        return (
            f"holds {len(factors)} factors of an adapter beside the weights, first "
            f"'{factors[0][:90]}', which programs apply or drop as they like; merge them with PEFT "
            "(merge_and_unload) and save again, or remove them from the file"
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
