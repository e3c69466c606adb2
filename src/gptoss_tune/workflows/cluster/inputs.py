"""Which files of this machine a recipe reads: a job that runs elsewhere has to be given them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from gptoss_tune.errors import RecipeError
from gptoss_tune.shipped import shipped

if TYPE_CHECKING:
    from gptoss_tune.recipe import DataSection, EvaluationSection

SHIPPED_DATA = "gptoss-data"
"""What the folder of the shipped data is called in the job's own folder."""
_PATTERN = re.compile(r"[*?\[]")


def named_files(
    base: str, init_from: str | None, data: DataSection, evaluation: EvaluationSection
) -> list[str]:
    """Return every place that a recipe names to be read, each once, in its order."""
    sources = [source.path for source in (*data.train, *(data.eval or ()))]
    drift, safety = evaluation.drift, evaluation.safety
    asked = [*(evaluation.prompts or ()), *(drift.references or ()), *(drift.probes or ())]
    asked += [*(safety.requests or ()), *([safety.policy] if safety.policy else ())]
    named = [base, *([init_from] if init_from else []), *sources, *asked]
    return list(dict.fromkeys(named))


def local_files(named: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Return those of ``named`` that lie on this machine, relative to ``folder``.

    Of a pattern the folder that it looks through is returned. What is not here is left out: a name
    on the Hub, or a file that the job's machine has.

    Raises:
        RecipeError: One lies outside ``folder``; its path would be another one there.
    """
    found: list[str] = []
    for name in named:
        parts = Path(name).parts
        fixed = next((n for n, part in enumerate(parts) if _PATTERN.search(part)), len(parts))
        place = Path(*parts[:fixed]) if fixed else Path(".")
        if not (folder / place).exists():
            continue
        if place.is_absolute() or ".." in place.parts or not place.parts:
            raise RecipeError(
                f"{name}: the job's machine gets files below the current folder {folder}, and "
                "this lies elsewhere; copy it here, and name it by its path from here"
            )
        found.append(place.as_posix())
    # What lies in a folder that is sent is sent with it.
    kept = [f for f in found if not any(f.startswith(f"{other}/") for other in found)]
    return tuple(dict.fromkeys(kept))


def shipped_there(recipe: str, named: Iterable[str]) -> tuple[str, set[str]]:
    """Return a recipe's text with the shipped data where a job links them, and which were named.

    A shipped recipe names its data where this machine has them installed; the job's machine has
    the same files in another place.
    """
    here = f"{shipped('data')}/"
    found = {name for name in named if name.startswith(here)}
    return recipe.replace(here, f"{SHIPPED_DATA}/"), found
