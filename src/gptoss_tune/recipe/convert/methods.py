"""The base and the method in the words of the other tools, and what each does in silence.

The base has to be a gpt-oss model.

TRL's trainers stand behind all three, so a setting that is absent has TRL's default, which is
written out where this project's is another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from gptoss_tune.recipe.convert.draft import Draft
from gptoss_tune.recipe.convert.draft_rules import as_number
from gptoss_tune.recipe.dump import Noted
from gptoss_tune.recipe.schema.value_types import is_hub_name

ROWS: Final = {
    **dict.fromkeys(("dpo", "ipo", "simpo", "orpo"), "pair"),
    "kto": "label",
    "sft": "conversation",
}
"""What a row is to a method."""

# Settings of a method with TRL's defaults, where they are not the recipe's.
_USUAL: Final[dict[str, dict[str, Any]]] = {
    "simpo": {"beta": 0.1, "gamma": 0.5},
}


def preference(
    draft: Draft, name: str, keys: Mapping[str, str], usual: Mapping[str, Any] | None = None
) -> None:
    """Convert the settings of a method.

    Args:
        draft: The recipe; ``method.name`` is told by the caller.
        name: Of the method.
        keys: The tool's keys, and the settings of the method that they are.
        usual: The tool's own defaults of these settings, where they are not TRL's.
    """
    from gptoss_tune.recipe.schema import METHODS

    known = METHODS[name].model_fields
    for key, setting in keys.items():
        if not draft.has(key):
            continue
        if name == "sft":
            draft.irrelevant(key, "a setting of preferences, and the method is none of them")
        elif setting not in known:
            draft.irrelevant(key, f"{name} does not use it")
        elif f"method.{setting}" in draft.settings:
            draft.irrelevant(key, f"method.{setting} is set by another key")
        else:
            draft.converted(key, f"method.{setting}", as_number(draft.get(key)))
    for setting, value in {**_USUAL.get(name, {}), **(usual or {})}.items():
        if setting in known and known[setting].default != value:
            draft.default(f"method.{setting}", value)


def base(draft: Draft, key: str, revision: str) -> None:
    """Convert the base and its revision.

    Raises:
        RecipeError: There is none, or its name is another model's.
    """
    setting, name = "model.name_or_path", draft.get(key)
    instead = draft.options.model
    if instead is not None:
        if name is None:
            draft.settings[setting] = Noted(instead, "--model")
        elif name == instead:
            draft.converted(key, setting, instead)
        else:
            draft.converted(key, setting, instead, "--model, in its place")
    elif not isinstance(name, str):
        raise draft.refuse(key, "a gpt-oss model", "give --model 20b, or 120b")
    elif "gpt-oss" not in name.lower().replace("_", "-") and not os.path.isdir(name):
        raise draft.refuse(
            key, "a gpt-oss model", "give --model 20b (or 120b, or a folder) to train that instead"
        )
    else:
        draft.converted(key, setting, name)
    if draft.has(revision):
        if instead is None and is_hub_name(str(name)):
            draft.converted(revision, "model.revision", str(draft.get(revision)))
        else:
            draft.irrelevant(revision, "of another base, or of a folder")
