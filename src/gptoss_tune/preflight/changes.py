"""The names of ``--allow-change`` before a run: what can be told without its fingerprint."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptoss_tune.errors import RecipeError
from gptoss_tune.preflight.obstacles import Obstacles
from gptoss_tune.recipe.dump import by_name
from gptoss_tune.recipe.renamed import entry_in_new_name
from gptoss_tune.recipe.schema import TrainSection
from gptoss_tune.run.record import read_record


def look_at_changes(
    allowed: Sequence[str], train: TrainSection, settings: dict[str, Any], obstacles: Obstacles
) -> None:
    """Look whether each name can differ between the run in the folder and this one.

    Args:
        allowed: Names given with ``--allow-change``.
        train: Names the folder. Of a checkpoint by its path the run itself compares.
        settings: Of the recipe, as JSON.
        obstacles: What is found.
    """
    if train.resume not in ("auto", "never"):
        return
    before: dict[str, Any] = {}
    if allowed:
        with obstacles.looking("train.output_dir"):
            before = read_record(Path(train.output_dir)).get("fingerprint") or {}
    known = {entry_in_new_name(name) for name in before} | by_name(settings).keys()
    for name in allowed:
        with obstacles.looking("--allow-change"):
            if not before:
                raise RecipeError(f"'{name}': {train.output_dir} holds no run yet; leave it out")
            if name not in known:
                meant = entry_in_new_name(name)
                near = [meant] if meant in known else difflib.get_close_matches(name, known, n=1)
                listed = f"known are {', '.join(sorted(known))}"
                hint = f"did you mean {near[0]}?" if near else listed
                raise RecipeError(f"'{name}': nothing of that name is compared; {hint}")
