"""Adapters that start from trained factors instead of fresh ones.

The file must be the adapter that the recipe describes: the same ranks and scaling, a factor for
every target and none that nothing would read. Letting PEFT load what fits was the alternative: it
leaves missing factors at their random start and drops unknown ones with a warning, and the run then
continues something else than was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.model.lora import ADAPTER_NAME
from gptoss_tune.run.folder import ADAPTER
from gptoss_tune.weights.adapter_config import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    SWAPPING_PEFT,
    find_adapter,
    saved_by_swapping_peft,
)
from gptoss_tune.weights.adapter_keys import pefts_names
from gptoss_tune.weights.adapters.kinds import refuse_other_kinds
from gptoss_tune.weights.hashes import refuse_damaged
from gptoss_tune.weights.layouts.names import ONE_BY_ONE
from gptoss_tune.weights.safetensors_file import SafetensorsFile

# What decides how a factor acts, beside its shape; every one must be as the recipe has it.
_ACTING = (
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "bias",
    "lora_bias",
    "fan_in_fan_out",
)


def init_from(model: PeftModel, source: str | Path) -> Path:
    """Copy the factors of a trained adapter into those of ``model``.

    Args:
        model: Base with adapters as the recipe wants them.
        source: A folder with ``adapter_config.json``, or a run, whose ``adapter/`` is meant.

    Returns:
        The folder that was read.

    Raises:
        CheckpointError: No adapter there; other ranks, scaling, targets or shapes than the
            model's; a factor that is missing, superfluous or not finite; a file whose hash is not
            that in the adapter's manifest.
    """
    folder = initial_adapter_folder(Path(source))
    refuse_damaged(folder, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    _check_config(folder, model)
    file = SafetensorsFile(inside(folder, ADAPTER_WEIGHTS, f"{folder}: has"))
    # References to the parameters themselves, under the names in which PEFT saves them.
    factors = get_peft_model_state_dict(
        model, adapter_name=ADAPTER_NAME, save_embedding_layers=False
    )
    _check_entries(file, factors)
    with torch.no_grad():
        for name, factor in factors.items():
            trained = file.read(name)
            if not torch.isfinite(trained).all():
                raise CheckpointError(
                    f"{file.path}: '{name}' holds NaN or infinity; its training diverged, start "
                    "from an earlier checkpoint"
                )
            factor.copy_(trained)
    return folder


def initial_adapter_folder(source: Path) -> Path:
    """Return the folder of the adapter that ``lora.init_from`` means.

    Raises:
        CheckpointError: There is none.
    """
    folder = find_adapter(source)
    if folder is None:
        raise CheckpointError(
            f"lora.init_from: {source} holds no {ADAPTER_CONFIG}, nor does its folder {ADAPTER}/; "
            "name a finished run or a PEFT adapter"
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(
            f"lora.init_from: {folder / ADAPTER_WEIGHTS}: no such file; expected the adapter "
            "saved with safe_serialization"
        )
    return folder


def _check_config(folder: Path, model: PeftModel) -> None:
    """Refuse an adapter whose factors would act otherwise here than where they were trained."""
    file = folder / ADAPTER_CONFIG
    found: dict[str, Any] = read_object(inside(folder, ADAPTER_CONFIG, f"{folder}: has"))
    if saved_by_swapping_peft(found) and found.get("target_parameters"):
        raise CheckpointError(
            f"{file}: PEFT {SWAPPING_PEFT} saved expert factors with in and out swapped; write a "
            f"repaired copy with `gptoss-tune adapter {folder} --for peft --repair --out DIR` and "
            "start from that"
        )
    _refuse_more_than_factors(file, folder, found)
    wanted = model.peft_config[ADAPTER_NAME].to_dict()
    differences = [
        f"{key}: got {found.get(key)!r}, expected {wanted[key]!r}"
        for key in _ACTING
        # What is off may be spelled False, null or {}, or not at all by an older PEFT.
        if (found.get(key) or None) != (wanted[key] or None)
    ]
    if differences:
        raise CheckpointError(
            f"lora.init_from: {file} is not the adapter that the recipe's lora section describes:"
            "\n  " + "\n  ".join(differences) + "\nset rank, alpha, expert_rank and expert_alpha "
            "to those of that adapter, or start from another"
        )


def _refuse_more_than_factors(file: Path, folder: Path, found: dict[str, Any]) -> None:
    """Refuse what a run trains no more of, and what factors need another base for."""
    try:
        refuse_other_kinds(file, found)
    except CheckpointError as error:
        raise CheckpointError(f"lora.init_from: {error}") from None
    told = [
        option
        for option in ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias")
        if found.get(option)
    ]
    if told:
        raise CheckpointError(
            f"lora.init_from: {file}: {told[0]} is {ascii(found[told[0]])[:60]}, and a run trains "
            f"factors alone; merge it with `gptoss-tune merge {folder} --out DIR`, name DIR as "
            "model.name_or_path and leave lora.init_from out"
        )


def _check_entries(file: SafetensorsFile, factors: dict[str, torch.Tensor]) -> None:
    """Refuse a file with other factors, or factors of other shapes, than the model has."""
    missing = sorted(factors.keys() - file.entries.keys())
    unread = sorted(file.entries.keys() - factors.keys())
    if pefts_names(file.path, unread) != {name: name for name in unread} or any(
        ONE_BY_ONE.search(name) for name in unread
    ):
        folder = file.path.parent
        raise CheckpointError(
            f"lora.init_from: {file.path}: has factors under other names than PEFT saves, first "
            f"'{unread[0]}'; write a copy with `gptoss-tune adapter {folder} --for peft --out DIR` "
            "and name that"
        )
    if missing or unread:
        first = f"missing '{missing[0]}'" if missing else f"superfluous '{unread[0]}'"
        raise CheckpointError(
            f"lora.init_from: {file.path}: {len(missing)} of the {len(factors)} factors that the "
            f"recipe trains are missing and {len(unread)} belong to no target of it, first "
            f"{first}; set lora.target_modules, target_parameters and layers to those of that "
            "adapter"
        )
    for name, factor in factors.items():
        shape = file.entries[name].spec.shape
        if shape != tuple(factor.shape):
            raise CheckpointError(
                f"lora.init_from: {file.path}: '{name}' is {list(shape)}, expected "
                f"{list(factor.shape)}; the adapter is of another base or rank"
            )
