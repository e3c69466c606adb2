"""A file of another tool -> the text of a recipe, checked, and what became of each key.

The tool is told by keys that only it has. What the recipe's own rules refuse is told with the line
of the other file that it came from.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe.convert.axolotl import AXOLOTL_RULES, axolotl_defaults, draft_axolotl
from gptoss_tune.recipe.convert.draft import Draft, Options, Outcome
from gptoss_tune.recipe.convert.draft_rules import Rule, apply
from gptoss_tune.recipe.convert.llamafactory import (
    LLAMAFACTORY_RULES,
    draft_llamafactory,
    llamafactory_defaults,
)
from gptoss_tune.recipe.convert.methods import ROWS
from gptoss_tune.recipe.convert.trl import TRL_RULES, draft_trl, trl_defaults
from gptoss_tune.recipe.dump import Noted, short_yaml
from gptoss_tune.recipe.load import file_text
from gptoss_tune.recipe.mistakes import KeyPath, Place, RecipeMistakes
from gptoss_tune.recipe.recipe import SECTIONS, Recipe
from gptoss_tune.recipe.schema import METHODS
from gptoss_tune.recipe.validate import findings
from gptoss_tune.recipe.yaml_reader import Document, read_document

_PLAIN: Final = (
    *("base_model", "model_name_or_path", "rl", "stage", "finetuning_type", "adapter", "pref_loss"),
    *("optimizer", "optim", "lr_scheduler", "lr_scheduler_type", "gradient_checkpointing"),
    *("save_strategy", "eval_strategy", "evaluation_strategy", "warmup_ratio", "warmup_steps"),
    *("max_steps", "num_epochs", "num_train_epochs", "save_steps", "eval_steps", "batch_size"),
    *("micro_batch_size", "gradient_accumulation_steps", "per_device_train_batch_size"),
    *("lora_r", "lora_rank", "lora_alpha", "lora_dropout", "val_set_size", "val_size"),
    *("dataset_dir", "dataset_name", "quantization_bit", "wandb_mode", "dataset_text_field"),
)
"""Keys that have one plain value in every tool that has them."""
LONGEST: Final = 131_072
"""What gpt-oss reads, and ``data.max_length`` can be."""


@dataclass(frozen=True, slots=True)
class _Tool:
    """How a tool's files are known and converted.

    Attributes:
        name: As people call it.
        own: Keys that only its files have; the first is in all of them.
        draft: Converts the keys that depend on each other.
        rules: Of all others.
        defaults: Writes what it does where its file says nothing.
    """

    name: str
    own: tuple[str, ...]
    draft: Callable[[Draft], None]
    rules: dict[str, Rule]
    defaults: Callable[[Draft], None]


_TOOLS: Final = (
    _Tool(
        "Axolotl",
        ("base_model", "datasets", "micro_batch_size", "sequence_len", "num_epochs", "adapter"),
        draft_axolotl,
        AXOLOTL_RULES,
        axolotl_defaults,
    ),
    _Tool(
        "LLaMA-Factory",
        ("model_name_or_path", "stage", "finetuning_type", "dataset", "template", "cutoff_len"),
        draft_llamafactory,
        LLAMAFACTORY_RULES,
        llamafactory_defaults,
    ),
    _Tool(
        "TRL",
        (
            *("model_name_or_path", "dataset_name", "use_peft", "lora_r", "max_length"),
            *("dataset_mixture", "datasets", "assistant_only_loss", "packing"),
            "attn_implementation",
        ),
        draft_trl,
        TRL_RULES,
        trl_defaults,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conversion:
    """A recipe and where it came from.

    Attributes:
        text: YAML, with the origin of each line that is called otherwise there.
        recipe: What the text says.
        tool: Whose file it was.
        outcomes: What became of each key, in the order of the file.
    """

    text: str
    recipe: Recipe
    tool: str
    outcomes: tuple[Outcome, ...]


def convert(path: str | os.PathLike[str], options: Options | None = None) -> Conversion:
    """Return the recipe of a file of Axolotl, LLaMA-Factory or TRL.

    Raises:
        RecipeError: The file cannot be read, is none of theirs, or trains what cannot be trained
            here; the message names its line.
    """
    name = os.fspath(path)
    document = read_document(file_text(name), lambda line, column: Place(0, line, column, name))
    if document.mistakes:
        raise RecipeMistakes(name, document.mistakes)
    tool = _tool_of(name, document)
    draft = Draft(name, tool.name, document, options or Options())
    draft.refuse_lists(_PLAIN)
    tool.draft(draft)
    apply(draft, tool.rules)
    tool.defaults(draft)
    _settle(draft)
    recipe = _checked(draft)
    outcomes = tuple(
        sorted(draft.outcomes.values(), key=lambda outcome: (outcome.line, outcome.key))
    )
    return Conversion(_text(draft, outcomes), recipe, tool.name, outcomes)


def _tool_of(name: str, document: Document) -> _Tool:
    keys = document.values.keys()
    if {"model", "data", "train"} <= keys:
        raise RecipeError(f"{name}: is a recipe already; `gptoss-tune check {name}` checks it")
    scores = [(len(keys & {*tool.own}) * (tool.own[0] in keys), tool) for tool in _TOOLS]
    score, tool = max(scores, key=lambda entry: entry[0])
    if score < 2:
        listed = "; ".join(f"{tool.name} has {', '.join(tool.own[:4])}" for tool in _TOOLS)
        raise RecipeError(
            f"{name}: is no configuration that is known here ({listed}); write a recipe with "
            "`gptoss-tune init`"
        )
    return tool


def _settle(draft: Draft) -> None:
    """Fit settings to each other: lengths to pairs, and nothing that another setting idles."""
    settings = draft.settings
    method = settings["method.name"].value if "method.name" in settings else "sft"
    length = settings.get("data.max_length")
    if ROWS.get(method) == "pair" and length is not None and isinstance(length.value, int):
        both = min(2 * length.value, LONGEST)
        note = f"{length.note}: " if length.note else ""
        settings["data.max_length"] = Noted(both, f"{note}both answers of a pair together")
        told = f"data.max_length: {both}; both answers of a pair stand in it"
        draft.retell("data.max_length", "converted", told)
    if method != "sft":
        for key, allowed in (("data.too_long", ("drop", "error")), ("data.turns", ("all",))):
            if key in settings and settings[key].value not in allowed:
                del settings[key]
                draft.retell(key, "none", "answers of preferences are whole, and all turns count")
    if settings.get("lora.target_parameters") and not settings["lora.target_parameters"].value:
        for key in ("lora.expert_rank", "lora.expert_alpha"):
            settings.pop(key, None)


def _checked(draft: Draft) -> Recipe:
    """Return the recipe of a draft.

    Raises:
        RecipeMistakes: Each with the place in the other file.
    """
    checked = Document(mistakes=[])
    for path in SECTIONS:
        _inside(checked.values, path[:-1])[str(path[-1])] = {}
    for setting, noted in draft.settings.items():
        path: KeyPath = tuple(setting.split("."))
        _inside(checked.values, path[:-1])[str(path[-1])] = noted.value
        fallback = draft.places.get(path, Place(0, 0, 0, draft.name))
        for below in _paths(path, noted.value):
            place = draft.places.get(below, fallback)
            checked.key_places[below] = checked.value_places[below] = place
    try:
        return Recipe.model_validate(checked.values)
    except ValidationError as error:
        found = findings(error, checked, checked.values, Place(0, 0, 0, draft.name))
        raise RecipeMistakes(draft.name, found) from None


def _inside(values: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    for part in path:
        values = values.setdefault(str(part), {})
    return values


def _paths(path: KeyPath, value: Any) -> list[KeyPath]:
    found = [path]
    below = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        below = enumerate(value)
    for key, entry in below:
        found += _paths((*path, key), entry)
    return found


def _text(draft: Draft, outcomes: tuple[Outcome, ...]) -> str:
    heading = [f"Converted from {draft.tool}'s {os.path.basename(draft.name)}."]
    lost = [outcome for outcome in outcomes if outcome.fate == "none"]
    if lost:
        heading.append("Without a counterpart, and what happens instead:")
        heading += [f"- line {one.line}, {_key_and_value(one)}: {one.text}" for one in lost]
    settings = {
        setting: noted
        for setting, noted in draft.settings.items()
        if not _is_default(setting, noted.value, draft)
    }
    return short_yaml(settings, heading)


def _is_default(setting: str, value: Any, draft: Draft) -> bool:
    """Whether a setting says what a recipe without it says."""
    section, _, name = setting.rpartition(".")
    if section == "method":
        method = draft.settings["method.name"].value if "method.name" in draft.settings else "sft"
        field = METHODS[method].model_fields[name]
    elif (known := SECTIONS.get(tuple(section.split(".")))) is None:
        return False  # of a section that is absent where nothing names it
    else:
        field = known.model_fields[name]
    return not field.is_required() and field.get_default(call_default_factory=True) == value


def _key_and_value(outcome: Outcome) -> str:
    return f"{outcome.key} ({outcome.value})" if outcome.value else outcome.key
