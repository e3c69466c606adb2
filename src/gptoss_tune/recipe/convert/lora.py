"""LoRA in the words of PEFT: rank, alpha, and which weights; experts are parameters, not modules.

``all-linear`` reaches the attention projections of gpt-oss and nothing else: its experts are held
as parameters. What the file trains is what the recipe trains, with a note where experts are not.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

from gptoss_tune.recipe.convert.draft import Draft, as_list, is_off
from gptoss_tune.recipe.convert.draft_rules import Rule, as_number, none, same, table
from gptoss_tune.recipe.dump import Noted

_MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
_PARAMETERS: Final = ("gate_up_proj", "down_proj")
_EVERY_LINEAR: Final = ("all", "all-linear", "all_linear")
_NO_EXPERTS: Final = "the file adapts no experts; remove this line to train them too"


def scaling(draft: Draft, rank: str, *, usual_rank: int, usual_alpha: float | None) -> None:
    """Convert rank and alpha; rank-stabilised scaling becomes the alpha that gives the same.

    Args:
        draft: The recipe.
        rank: The key of the rank.
        usual_rank: Of the tool, where the file names none.
        usual_alpha: Likewise; ``None``: twice the rank.
    """
    number = as_number(draft.get(rank, usual_rank))
    if draft.has(rank):
        draft.converted(rank, "lora.rank", draft.get(rank))
    else:
        draft.default("lora.rank", usual_rank)
    alpha = as_number(draft.get("lora_alpha"))
    stabilised = next((k for k in ("use_rslora", "peft_use_rslora") if draft.has(k)), None)
    factor, note = 1.0, None
    if stabilised is not None and not is_off(draft.get(stabilised)) and _is_number(number):
        factor = math.sqrt(number)
        note = f"alpha / sqrt(rank) there: {stabilised}"
        draft.also(stabilised, "lora.alpha: times the root of the rank, the same scaling")
    elif stabilised is not None:
        draft.irrelevant(stabilised, "the update is scaled by alpha / rank, there as here")
    if alpha is not None:
        scaled = alpha if factor == 1.0 or not _is_number(alpha) else round(alpha * factor, 4)
        draft.converted("lora_alpha", "lora.alpha", scaled, note)
    elif _is_number(number):
        usual = 2 * number if usual_alpha is None else usual_alpha
        draft.settings["lora.alpha"] = Noted(round(usual * factor, 4), f"{draft.tool}'s default")


def targets(draft: Draft, modules: str, usual: Any) -> None:
    """Convert what is adapted.

    Args:
        draft: The recipe.
        modules: The key of the modules.
        usual: Its value where the file has none.
    """
    linear = draft.get("lora_target_linear")
    said = as_list(draft.get(modules, usual))
    if not is_off(linear):
        said = ["all-linear", *said]
    named = {str(name).rpartition(".")[2] for name in said}
    everything = not named.isdisjoint(_EVERY_LINEAR)
    chosen = [name for name in _MODULES if everything or name in named]
    extra = sorted(named - {*_MODULES, *_PARAMETERS, *_EVERY_LINEAR})
    parameters, layers = _parameters(draft, named)
    key = "lora_target_linear" if not is_off(linear) else modules
    if not named and not draft.has("lora_target_parameters"):
        if linear is not None:
            draft.irrelevant("lora_target_linear", "off, and no modules are named")
        return  # nothing is named there: attention and all experts, the default
    if draft.has(modules) and not chosen and not parameters:
        draft.none(modules, "gpt-oss has no such modules: attention and all experts get adapters")
        if linear is not None:
            draft.irrelevant("lora_target_linear", "off: the modules are named")
        return
    if draft.has(modules) or not is_off(linear):
        note = f"no adapter for {', '.join(extra)}" if extra else None
        draft.converted(key, "lora.target_modules", chosen, note)
        if key != modules and draft.has(modules):
            draft.also(modules, f"lora.target_modules: {', '.join(chosen)}")
    if linear is not None and is_off(linear):
        draft.irrelevant("lora_target_linear", "off: the modules are named")
    if len(chosen) == len(_MODULES):
        draft.settings.pop("lora.target_modules", None)  # the default
    elif "lora.target_modules" not in draft.settings:
        draft.default("lora.target_modules", chosen)
    _write_parameters(draft, parameters, layers, attention=bool(chosen))


def _parameters(draft: Draft, named: set[str]) -> tuple[list[str], list[int]]:
    """Return the expert weights that are adapted, and the layers that are named with them."""
    entries = [str(entry) for entry in as_list(draft.get("lora_target_parameters"))]
    names = {entry.rpartition(".")[2] for entry in entries} | (named & {*_PARAMETERS})
    numbers = {
        int(found[1])
        for entry in entries
        if (found := re.match(r"(?:.*\blayers\.)?(\d+)\.", entry)) is not None
    }
    return [name for name in _PARAMETERS if name in names], sorted(numbers)


def _write_parameters(
    draft: Draft, parameters: list[str], layers: list[int], *, attention: bool
) -> None:
    key, setting = "lora_target_parameters", "lora.target_parameters"
    if draft.has(key) and layers and attention:
        text = f"{setting} on every layer: lora.layers would hold for attention too"
        draft.none(key, text)
        draft.settings[setting] = Noted(parameters, key)
    elif draft.has(key):
        if layers:
            draft.settings["lora.layers"] = Noted(layers, key)
        draft.converted(key, setting, parameters, f"lora.layers: {layers}" if layers else None)
    if parameters == list(_PARAMETERS):
        draft.settings.pop(setting, None)  # the default
    elif not parameters:
        draft.settings[setting] = Noted([], _NO_EXPERTS)
    elif setting not in draft.settings:
        draft.settings[setting] = Noted(parameters)


def dropout(draft: Draft) -> None:
    """Tell what happens to the dropout of the factors."""
    if not draft.has("lora_dropout"):
        return
    value = as_number(draft.get("lora_dropout"))
    if not value:
        draft.irrelevant("lora_dropout", "0 there, and none here")
    else:
        draft.none("lora_dropout", "no dropout: PEFT refuses it for adapters on expert weights")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


LORA_RULES: Final[dict[str, Rule]] = {
    "peft_layers_to_transform": same("lora.layers"),
    "layers_to_transform": same("lora.layers"),
    "lora_model_dir": same("lora.init_from"),
    "adapter_name_or_path": same("lora.init_from"),
    **table(
        "plain LoRA: magnitudes, other starts and other rates for A and B are not trained",
        none,
        "peft_use_dora use_dora loraplus_lr_ratio loraplus_lr_embedding pissa_init pissa_iter "
        "pissa_convert peft_init_lora_weights init_lora_weights peft relora loftq_config "
        "relora_steps relora_prune_ratio relora_warmup_steps relora_anneal_steps use_llama_pro",
    ),
    **table(
        "embeddings and head stay as they are: adapters are on attention and experts alone",
        none,
        "lora_modules_to_save additional_target modules_to_save peft_trainable_token_indices "
        "resize_token_embeddings_to_32x resize_vocab tokens add_tokens add_special_tokens",
    ),
    **table(
        "of PEFT's own files; the adapter is written in the layout that PEFT reads",
        none,
        "lora_fan_in_fan_out lora_on_cpu lora_task_type create_new_adapter peft_layers_pattern "
        "peft_autocast_adapter_dtype lora_bias peft_ensure_weight_tying",
    ),
}
"""Keys of PEFT that stand alone."""
