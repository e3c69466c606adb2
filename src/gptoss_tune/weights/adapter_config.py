"""The files of a PEFT adapter: where they are, and a plain LoRA of known options, or refused.

PEFT's configuration can name a library to import (``megatron_core``, ``auto_mapping``) and files to
unpickle (``corda_config``), and every release adds options that change what the
factors mean. An export that ignored one would merge something else than was trained; so an option
that is set and not understood is refused, whatever it is.

PEFT reads ``target_modules`` and the keys of ``rank_pattern`` as regular expressions, and other
tools write long ones. Python's engine backtracks: ``(.*)*x`` on a name of forty letters takes
longer than a training, and nothing in the process can interrupt it. So what is more than a plain
name is matched in a process of its own, which is given a few seconds. Telling the harmful
expressions from their text was the alternative; it refuses harmless ones and misses others.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from gptoss_tune.errors import CheckpointError, RecipeError
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.recipe.recipe import chosen_count
from gptoss_tune.recipe.schema import LoraSection
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.weights.adapters.kinds import refuse_other_kinds

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SWAPPING_PEFT = "0.19.0"
"""The release that saved the factors of ``target_parameters`` with in and out swapped."""

CHOSEN_EXPERTS = "chosen_experts"
"""Ours in ``adapter_config.json``: ``{"0": [3, 7], ...}``, the experts that have factors, by layer.
PEFT passes an option over that it does not know, and refuses the factors by their shape."""

ExpertChoice = Mapping[int, tuple[int, ...]]
"""Numbers of experts, ascending, by the number of their layer."""

_LARGEST_RANK = 65_536
_CONVERT_PICKLE = (
    'python -c "import torch; from safetensors.torch import save_file; '
    "w = torch.load('adapter_model.bin', map_location='cpu', weights_only=True); "
    "save_file({n: t.contiguous() for n, t in w.items()}, 'adapter_model.safetensors')\""
)
_LIST = (list, type(None))
# What is read here, with its kinds.
_KINDS: dict[str, tuple[type, ...]] = {
    "target_modules": (str, *_LIST),
    "exclude_modules": (str, *_LIST),
    "target_parameters": _LIST,
    "layers_to_transform": (int, *_LIST),
    "layers_pattern": (str, *_LIST),
    "rank_pattern": (dict, type(None)),
    "alpha_pattern": (dict, type(None)),
    "eva_config": (dict, type(None)),  # of the start of the factors, which is behind them
    "use_rslora": (bool, type(None)),
    "use_dora": (bool, type(None)),
    "lora_bias": (bool, type(None)),
    "modules_to_save": _LIST,
    "trainable_token_indices": (list, dict, type(None)),
    "base_model_name_or_path": (str, type(None)),
    "revision": (str, type(None)),
    "peft_version": (str, type(None)),
}
# Read elsewhere, or without effect on trained factors whatever it says.
_WITHOUT_EFFECT = {
    "peft_type", "task_type", "r", "lora_alpha", "bias", "auto_mapping", "inference_mode",
    "lora_dropout", "qalora_group_size", "megatron_core", "ensure_weight_tying",
    "init_lora_weights", "loftq_config",
}  # fmt: skip
_NAME = re.compile(r"\w{1,100}", re.ASCII)
_REVISION = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_LIBRARIES = ("transformers.", "peft.", "gptoss_tune.")


def find_adapter(source: Path) -> Path | None:
    """Return the folder with ``adapter_config.json``: ``source`` itself, or that of the run it is.

    None where neither holds one; what that means is the caller's to say.
    """
    for folder in (source, RunFolder(source).adapter):
        if (folder / ADAPTER_CONFIG).is_file():
            return folder
    return None


def saved_by_swapping_peft(config: dict[str, Any]) -> bool:
    """Return whether the release that swapped expert factors wrote this ``adapter_config.json``."""
    return config.get("peft_version") == SWAPPING_PEFT


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Return ``adapter_config.json``, refusing kinds of adapters that no export can hold.

    Raises:
        CheckpointError: Not strict JSON, not LoRA, pickled weights, or an option that is refused.
    """
    file = inside(folder, ADAPTER_CONFIG, f"{folder}: has")
    config = read_object(file)
    refuse_other_kinds(file, config)
    _check_numbers(file, config)
    _check_options(file, config)
    _refuse_other_files(folder)
    return config


def _refuse_other_files(folder: Path) -> None:
    """Refuse weights that are not in the one file that PEFT reads."""
    parts = sorted(folder.glob("adapter_model-*.safetensors"))
    parts += sorted(folder.glob(f"{ADAPTER_WEIGHTS}.index.json"))
    there = (folder / ADAPTER_WEIGHTS).is_file()
    if parts:
        beside = f" beside {ADAPTER_WEIGHTS}" if there else ""
        raise CheckpointError(
            f"{parts[0]}: is a part of an adapter{beside}; PEFT reads {ADAPTER_WEIGHTS} alone. "
            "Save it in one file (save_pretrained with max_shard_size above its size) or keep the "
            "files of one adapter"
        )
    if there:
        return
    pickle = folder / "adapter_model.bin"
    if pickle.exists():
        raise CheckpointError(
            f"{pickle}: is a pickle file, which can run code when it is read; expected "
            f"{ADAPTER_WEIGHTS}. Save the adapter with safe_serialization, or convert it where it "
            f"may run code: {_CONVERT_PICKLE}"
        )
    if (folder / "adapters.safetensors").is_file():
        raise CheckpointError(
            f"{folder / 'adapters.safetensors'}: is written by mlx-lm; fuse it there (mlx_lm.fuse "
            "--dequantize) and use the result as a base"
        )
    raise CheckpointError(f"{folder / ADAPTER_WEIGHTS}: no such file; the adapter is incomplete")


def _check_numbers(file: Path, config: dict[str, Any]) -> None:
    """Refuse ranks and scalings that are none."""
    found = {"r": config.get("r"), "lora_alpha": config.get("lora_alpha")}
    for option in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(option)
        if isinstance(patterns, dict):
            found |= {f"{option}[{key[:60]!a}]": value for key, value in patterns.items()}
    for name, value in found.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value <= _LARGEST_RANK
        ):
            raise CheckpointError(
                f"{file}: {name} is {ascii(value)[:60]}; expected a positive number"
            )


def _check_options(file: Path, config: dict[str, Any]) -> None:
    """Refuse options of another kind than PEFT writes, and set ones that nothing here reads."""
    for option, kinds in _KINDS.items():
        value = config.get(option)
        entries = value if isinstance(value, list) else ()
        inner = int if option in ("layers_to_transform", "trainable_token_indices") else str
        if not isinstance(value, kinds) or not all(isinstance(entry, inner) for entry in entries):
            raise CheckpointError(f"{file}: {option} is {ascii(value)[:60]}; PEFT writes no such")
    layers = config.get("layers_pattern") or []
    for pattern in [layers] if isinstance(layers, str) else layers:
        if not _NAME.fullmatch(pattern):
            raise CheckpointError(
                f"{file}: layers_pattern is {pattern[:60]!a}; expected a name such as 'layers'"
            )
    mapping = config.get("auto_mapping") or {}
    library = mapping.get("parent_library") if isinstance(mapping, dict) else mapping
    if mapping and not (isinstance(library, str) and library.startswith(_LIBRARIES)):
        raise CheckpointError(
            f"{file}: auto_mapping names the library {ascii(library)[:60]} to import; refused, "
            "remove it"
        )
    revision = config.get("revision")
    if revision and not _REVISION.fullmatch(revision):
        raise CheckpointError(
            f"{file}: revision is {ascii(revision)[:60]}; expected a commit, tag or branch, or "
            "give the base with --base and --revision"
        )
    known = {*_KINDS, *_WITHOUT_EFFECT, CHOSEN_EXPERTS}
    unknown = sorted(option for option, value in config.items() if value and option not in known)
    if unknown:
        raise CheckpointError(
            f"{file}: {unknown[0][:60]!a} is {ascii(config[unknown[0]])[:60]}, an option that no "
            "export knows; expected plain LoRA"
        )


def expert_choice(
    config: Mapping[str, Any], layers: int, experts: int, where: str
) -> dict[int, tuple[int, ...]] | None:
    """Return the experts that an adapter has factors of, by layer; ``None``: all.

    Args:
        config: Of ``adapter_config.json``.
        layers: Of the base.
        experts: In one of its layers.
        where: The file, for messages.

    Raises:
        CheckpointError: It is no choice of experts of such a base.
    """
    told = config.get(CHOSEN_EXPERTS)
    if told is None:
        return None
    found: dict[int, tuple[int, ...]] = {}
    for layer, numbers in told.items() if isinstance(told, dict) else ():
        named = isinstance(numbers, list) and all(type(n) is int for n in numbers)
        fits = named and numbers == sorted(set(numbers)) and 0 < len(numbers) <= experts
        if not fits or numbers[0] < 0 or numbers[-1] >= experts:
            raise CheckpointError(
                f"{where}: {CHOSEN_EXPERTS}[{str(layer)[:20]!a}] is {ascii(numbers)[:60]}; "
                f"expected numbers of experts from 0 to {experts - 1}, ascending"
            )
        if not (re.fullmatch(r"[0-9]{1,4}", str(layer)) and int(layer) < layers):
            raise CheckpointError(
                f"{where}: {CHOSEN_EXPERTS} names the layer {str(layer)[:20]!a}; expected 0 to "
                f"{layers - 1}, the adapter is of another base"
            )
        found[int(layer)] = tuple(numbers)
    if not found or len({len(numbers) for numbers in found.values()}) > 1:
        raise CheckpointError(
            f"{where}: {CHOSEN_EXPERTS} is {ascii(told)[:60]}; expected as many experts in each "
            "layer, by the layer's number"
        )
    return dict(sorted(found.items()))


def choice_to_start_from(
    folder: Path, lora: LoraSection, layers: int, experts: int
) -> dict[int, tuple[int, ...]] | None:
    """Return the experts of the adapter in ``folder``, which a run that starts from it trains.

    Args:
        folder: With ``adapter_config.json``.
        lora: Of the recipe.
        layers: Of the base.
        experts: In one of its layers.

    Raises:
        RecipeError: ``lora.experts`` asks for another number of them.
        CheckpointError: The configuration cannot be read.
    """
    file = folder / ADAPTER_CONFIG
    choice = expert_choice(read_object(file), layers, experts, str(file))
    found = None if choice is None else len(next(iter(choice.values())))
    asked = chosen_count(lora, experts)
    if found != asked:
        has, wants = found or f"all {experts}", asked or f"all {experts}"
        todo = "all" if found is None else f"{{count: {found}}}"
        raise RecipeError(
            f"lora.experts: asks for adapters on {wants} experts of a layer, and the adapter of "
            f"lora.init_from, {folder}, is on {has}; set lora.experts to {todo}, as a run trains "
            "the experts of the adapter that it starts from"
        )
    return choice


_PLAIN = re.compile(r"(?:[\w.-]|\\\.)*", re.ASCII)


_LONGEST = 4000


_TIMEOUT_S = 5.0


_MATCHER = (
    "import json, re, sys; how, pattern, names = json.load(sys.stdin); "
    "json.dump([getattr(re, how)(pattern, name) is not None for name in names], sys.stdout)"
)


@functools.lru_cache(maxsize=256)
def matching(
    how: Literal["ends", "fullmatch"], pattern: str, names: tuple[str, ...], where: str
) -> frozenset[str]:
    """Return those of ``names`` that ``pattern`` matches by one of PEFT's two rules.

    Args:
        how: The whole name (``fullmatch``), or the last parts of it (``ends``).
        pattern: As the configuration has it.
        names: Names of modules.
        where: The configuration's file and the option, for messages.

    Raises:
        CheckpointError: It is no regular expression, is very long, or does not come to an end.
    """
    if len(pattern) > _LONGEST:
        raise CheckpointError(f"{where}: a pattern of {len(pattern)} characters; list the modules")
    regex = pattern if how == "fullmatch" else rf"(.*\.)?({pattern})$"
    function = "fullmatch" if how == "fullmatch" else "match"
    if _PLAIN.fullmatch(pattern):
        return frozenset(name for name in names if getattr(re, function)(regex, name))
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCHER],
            input=json.dumps([function, regex, names]),
            capture_output=True,
            encoding="utf-8",
            timeout=_TIMEOUT_S,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{where}: the pattern {pattern[:60]!a} is not matched within {_TIMEOUT_S:g} s; it "
            "backtracks without end, list the modules by name"
        ) from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CheckpointError(
            f"{where}: {pattern[:60]!a} is no regular expression ({reason}); list the modules"
        ) from None
    found = json.loads(done.stdout)
    return frozenset(name for name, matched in zip(names, found, strict=True) if matched)
