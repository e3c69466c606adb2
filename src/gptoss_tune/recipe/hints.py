"""Diagnostics for a wrong setting: what was expected, "did you mean", the default.

What was expected comes from the JSON Schema, what to do from the value: a near miss of a known
word, the number without its quotes, the setting's new place, or the reason why a setting that
other tools have is refused here.
"""

from __future__ import annotations

import difflib
import json
import math
from typing import Any

from gptoss_tune.recipe.json_schema import expected_phrase, node_at, settings_below
from gptoss_tune.recipe.mistakes import KeyPath, dotted, plain, quoted
from gptoss_tune.recipe.schema import METHODS
from gptoss_tune.recipe.yaml_reader import scalar

_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
_PARAMETERS = ("gate_up_proj", "down_proj")
_EXPERTS_CANNOT = "is not possible for adapters on expert weights: PEFT refuses it there"
_NO_CODE = "a recipe cannot enable or name code to run; remove it"
_NO_TOKEN = "a recipe holds no credentials: log in with 'hf auth login' or 'wandb login'"
_PER_DEVICE = "train.per_device_train_batch_size"

# What people bring from other tools: the setting's name here, ...
_CALLED_HERE: dict[str, str] = {
    "base_model": "model.name_or_path",
    "batch_size": _PER_DEVICE,
    "chat_date": "data.date",
    "checkpointing": "train.activation_checkpointing",
    "dataset": "data.train",
    "datasets": "data.train",
    "epochs": "train.num_train_epochs",
    "dataset_test_split": "data.eval",
    "dataset_train_split": "data.train",
    "eval_batch_size": _PER_DEVICE,
    "eval_dataset": "data.eval",
    "eval_ratio": "data.eval_fraction",
    "eval_split": "data.eval_fraction",
    "eval_split_ratio": "data.eval_fraction",
    "grad_accum": "train.gradient_accumulation_steps",
    "gradient_checkpointing": "train.activation_checkpointing",
    "load_in_4bit": "model.linear_precision",
    "lora_alpha": "lora.alpha",
    "lora_r": "lora.rank",
    "loss_type": "method.name",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler_type",
    "max_seq_length": "data.max_length",
    "micro_batch_size": _PER_DEVICE,
    "model_name": "model.name_or_path",
    "model_name_or_path": "model.name_or_path",
    "num_epochs": "train.num_train_epochs",
    "optimizer": "train.optim",
    "output": "train.output_dir",
    "path": "model.name_or_path",
    "processes": "distributed.num_processes",
    "r": "lora.rank",
    "report_to": "tracking.wandb",
    "resume_from_checkpoint": "train.resume",
    "rpo_alpha": "method.sft_weight",
    "scheduler": "train.lr_scheduler_type",
    "seq_length": "data.max_length",
    "sequence_length": "data.max_length",
    "simpo_gamma": "method.gamma",
    "spread": "distributed.strategy",
    "start_from": "lora.init_from",
    "test_size": "data.eval_fraction",
    "test_split": "data.eval_fraction",
    "torch_dtype": "model.dtype",
    "train_dataset": "data.train",
    "val_set_size": "data.eval_fraction",
    "val_split": "data.eval_fraction",
    "validation_split": "data.eval_fraction",
    "wandb_project": "tracking.project",
    "warmup": "train.warmup_ratio",
    "world": "distributed",
    "world_size": "distributed.num_processes",
}
# ... or the reason why it does not exist.
_REFUSED: dict[str, str] = {
    "dropout": f"dropout {_EXPERTS_CANNOT}; remove it",
    "lora_dropout": f"dropout {_EXPERTS_CANNOT}; remove it",
    "use_dora": f"DoRA {_EXPERTS_CANNOT}, and servers refuse it; remove it",
    "bias": f"training biases {_EXPERTS_CANNOT}, and servers refuse it; remove it",
    "lora_bias": f"a bias in the adapter {_EXPERTS_CANNOT}, and servers refuse it; remove it",
    "modules_to_save": "servers refuse adapters that hold whole modules; remove it",
    "trust_remote_code": _NO_CODE,
    "auto_map": _NO_CODE,
    "import_path": _NO_CODE,
    "custom_code": _NO_CODE,
    "token": _NO_TOKEN,
    "hub_token": _NO_TOKEN,
    "hf_token": _NO_TOKEN,
    "api_key": _NO_TOKEN,
    "wandb_api_key": _NO_TOKEN,
    "<<": "merge keys are not read in recipes; write the settings out",
}
# What other tools take as a target of an adapter, and what to do here; see _of_targets.
_ALL_TARGETS = {"all-linear", "all_linear", "all", "*", "linear"}
_OTHER_TARGETS = {
    "attn": "write [q_proj, k_proj, v_proj, o_proj]",
    "attention": "write [q_proj, k_proj, v_proj, o_proj]",
    "qkv_proj": "write [q_proj, k_proj, v_proj]",
    "experts": "move it: write [gate_up_proj, down_proj] as lora.target_parameters",
    "mlp": "move it: write [gate_up_proj, down_proj] as lora.target_parameters",
    "gate_proj": "move it: write [gate_up_proj] as lora.target_parameters, gate and up are one",
    "up_proj": "move it: write [gate_up_proj] as lora.target_parameters, gate and up are one",
    "embed_tokens": "no adapter goes there: remove the entry",
    "lm_head": "no adapter goes there: remove the entry",
    "router": "no adapter goes there: remove the entry",
}
_SWITCHES = {
    **dict.fromkeys(("yes", "on", "true", "1"), "true"),
    **dict.fromkeys(("no", "off", "false", "0"), "false"),
}


def _all_settings() -> dict[str, list[str]]:
    """Return every setting's dotted name by its last part: ``{"rank": ["lora.rank"], ...}``."""
    names: dict[str, list[str]] = {}
    for section in settings_below(()):
        for key in settings_below((section,)):
            names.setdefault(key, []).append(f"{section}.{key}")
    return names


def meant_by(path: KeyPath) -> str | None:
    """Return the dotted setting that an unknown key most likely stands for; None: no idea.

    Looked for in this order: the name in other tools, the same key in another section, the nearest
    spelling in its own section, then anywhere.
    """
    *parents, key = (str(part) for part in path)
    word = key.strip().lower().replace("-", "_")
    here = settings_below(path[:-1])
    if parents and word in here:
        return dotted((*path[:-1], word))
    if word in _CALLED_HERE and len(path) <= 2:
        return _CALLED_HERE[word]
    everywhere = _all_settings()
    if word in everywhere:
        return everywhere[word][0]
    for known in (here, everywhere):
        if near := difflib.get_close_matches(word, known, n=1, cutoff=0.7):
            return dotted((*path[:-1], near[0])) if known is here else everywhere[near[0]][0]
    return None


def unknown_key(path: KeyPath, method: str) -> tuple[str, str]:
    """Return what was expected instead of an unknown key, and what to do; its value is not shown.

    A value under a wrong key may be anything, a credential too.

    Args:
        path: Of the key.
        method: Whose settings the section ``method`` can have.
    """
    word = str(path[-1]).strip().lower().replace("-", "_")
    parent = dotted(path[:-1])
    expected = f"a setting of '{parent}'" if parent else "a section"
    if word in _REFUSED:
        return expected, _REFUSED[word]
    names = settings_below(path[:-1])
    if not names:  # a mapping with names of one's own
        return "a name of at least one character", "write the name as the data has it"
    meant = meant_by(path)
    if path[:-1] == ("method",) and (meant is None or meant.startswith("method.")):
        return _of_method(word, method, meant)
    if meant:
        return expected, f"did you mean {meant}?"
    if len(names) <= 12:
        expected = f"one of {', '.join(names)}" if len(names) > 1 else f"'{names[0]}'"
    return expected, "remove it; 'gptoss-tune schema' lists every setting"


def _of_method(word: str, method: str, meant: str | None) -> tuple[str, str]:
    """Return the settings that ``method`` has, and what to do about a key that is none of them."""
    own = [name for name in METHODS[method].model_fields if name != "name"]
    expected = f"one of the settings of {method}: {', '.join(own)}"
    if not own:
        expected = f"no setting but method.name: {method} has none"
    setting = (meant or "").removeprefix("method.")
    near = difflib.get_close_matches(word, own, n=1, cutoff=0.7)
    if near or setting in (*own, "name"):
        return expected, f"did you mean method.{near[0] if near else setting}?"
    having = [name for name, section in METHODS.items() if setting in section.model_fields]
    if not having:
        return expected, "remove it"
    *others, last = having
    methods = f"{', '.join(others)} or {last}" if others else last
    did = "" if setting == word else f"did you mean method.{setting}? "
    return expected, f"{did}remove it, or set method.name to {methods}"


def expected_and_todo(
    path: KeyPath, value: Any, spelled: str | None, method: str | None = None
) -> tuple[str, str]:
    """Return what the setting at ``path`` takes, and what to write instead of ``value``."""
    node = node_at(path, method)
    assert node is not None, path
    return expected_phrase(node), (
        _of_targets(path, value)
        or _nearest_reading(node, value, spelled)
        or example_or_default(path, value, method)
    )


def _of_targets(path: KeyPath, value: Any) -> str | None:
    """Return what to do about a word that is no target of an adapter here; None: no idea."""
    setting = ".".join(str(part) for part in path[:2])
    words = {"lora.target_modules": _MODULES, "lora.target_parameters": _PARAMETERS}
    if setting not in words or not isinstance(value, str):
        return None
    word = value.strip().lower()
    if word in _ALL_TARGETS:
        return f"leave {setting} out: it then names all of them"
    for other, known in words.items():
        if other != setting and word in known:
            return f"move it: write [{word}] as {other}"
    return _OTHER_TARGETS.get(word.rpartition(".")[2])


def example_or_default(path: KeyPath, value: Any = None, method: str | None = None) -> str:
    """Return advice that needs no look at the value: an example, or the default."""
    node = node_at(path, method) or {}
    if isinstance(path[-1], int):
        return "correct or remove the entry"
    if "default" in node:
        default = node["default"]
        if isinstance(default, list | dict):
            return "remove it to keep the default"
        text = default if isinstance(default, str) else json.dumps(default)
        return f"remove it to keep {text}" if value is None else f"the default is {text}"
    example = next(iter((*node.get("examples", ()), *node.get("enum", ()))), "...")
    section = f" under '{path[0]}:'" if len(path) == 2 else ""
    return f"write for example {quoted(f'{path[-1]}: {example}')}{section}"


def _nearest_reading(node: dict[str, Any], value: Any, spelled: str | None) -> str | None:
    """Return what the author most likely wanted to write; None: no idea."""
    variants = node.get("anyOf", [node])
    kinds = {variant.get("type") for variant in variants}
    words = [str(word) for variant in variants for word in variant.get("enum", ())]
    words += [str(variant["const"]) for variant in variants if "const" in variant]
    if value is False or (isinstance(value, str) and _SWITCHES.get(value.lower()) == "false"):
        for nothing in ("disabled", "none"):
            if nothing in words:
                return f"write {nothing}"
    if isinstance(value, str):
        word = value.strip().lower()
        if words:
            near = difflib.get_close_matches(
                word.replace("-", "_"), words, n=1, cutoff=0.6
            ) or difflib.get_close_matches(word, words, n=1, cutoff=0.6)
            return f"did you mean {near[0]}?" if near else None
        if "boolean" in kinds:
            return f"write {_SWITCHES[word]}" if word in _SWITCHES else None
        if (
            kinds & {"integer", "number"}
            and isinstance(number := scalar(word.replace("_", "").replace(",", "")), int | float)
            and _in_range(number, node)
        ):
            return f"write {plain(str(number))}"
        if "array" in kinds and value:
            return _as_list(variants, value)
        return None
    if value is True and node.get("default") in ("auto", "never"):
        return "write auto or never"
    if isinstance(value, bool | int | float) and "string" in kinds and not words:
        return f'put it in quotes: "{plain(spelled or str(value).lower())}"'
    if "boolean" in kinds and value in (0, 1) and isinstance(value, int):
        return f"write {str(bool(value)).lower()}"
    if type(value) is int and "array" in kinds:
        return _as_list(variants, str(value))
    if isinstance(value, float) and "integer" in kinds and _in_range(value, node):
        return f"write {plain(str(int(value)))}"
    return None


def _as_list(variants: list[dict[str, Any]], value: str) -> str | None:
    """Return the list that one word, or several with commas, were meant as; None: not one."""
    items = next((v["items"] for v in variants if v.get("type") == "array"), {})
    words = [word.strip() for word in value.strip("[]").split(",")]
    known = items.get("enum")
    if known is None:
        kinds = {item.get("type") for item in items.get("anyOf", [items])}
        fits = "string" in kinds or ("integer" in kinds and all(w.isdecimal() for w in words))
        return f"write [{plain(value)}]" if fits else None
    if set(words) <= set(known) and len(set(words)) == len(words):
        return f"write [{', '.join(words)}]"
    near = difflib.get_close_matches(value.strip().lower(), known, n=1, cutoff=0.6)
    return f"write [{near[0]}]" if near else None


def _in_range(number: float, node: dict[str, Any]) -> bool:
    """Return whether an integer setting can hold ``number``, or a number setting may."""
    for variant in node.get("anyOf", [node]):
        if variant.get("type") == "number":
            return math.isfinite(number)
        if variant.get("type") == "integer" and math.isfinite(number):
            low, high = variant.get("minimum", -math.inf), variant.get("maximum", math.inf)
            return low <= number <= high and float(number).is_integer()
    return False
