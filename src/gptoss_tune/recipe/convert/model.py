"""The base that another tool's file names, which has to be a gpt-oss model."""

from __future__ import annotations

import os

from gptoss_tune.recipe.convert.draft import Draft
from gptoss_tune.recipe.dump import Noted
from gptoss_tune.recipe.schema.value_types import is_hub_name


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
