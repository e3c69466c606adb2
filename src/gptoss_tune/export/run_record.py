"""``run.json`` as an export reads it: of the run an adapter belongs to, in the kinds expected.

A record comes with an adapter, and the adapter may come from anyone. What is looked up in it later
is checked here once, so that a list where a mapping should be is a message and not a traceback.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptoss_tune.files.strict_json import read_object, refuse_other_kinds

_SOURCE = {"path": str}
_KINDS: dict[str, Any] = {
    "base": {"name": str, "fingerprint": {"weights": str, "config": str}},
    "environment": {"libraries": {}},
    "recipe": {
        "model": {},
        "lora": {},
        "train": {},
        "export": {"min_survival": float},
        "data": {"train": [_SOURCE], "eval": [_SOURCE]},
    },
}


def run_record(folder: Path) -> dict[str, Any]:
    """Return ``run.json`` beside or above an adapter; empty where there is none.

    Raises:
        CheckpointError: It is not strict JSON, or holds something else than a record.
    """
    for path in (folder / "run.json", folder.absolute().parent / "run.json"):
        if path.is_file():
            record = read_object(path)
            refuse_other_kinds(path, record, _KINDS)
            return record
    return {}


def wanted_survival(folder: Path) -> float | None:
    """Return the recipe's ``export.min_survival`` from ``run.json``; ``None`` where it has none."""
    return run_record(folder).get("recipe", {}).get("export", {}).get("min_survival")


def trained_merge_aware(folder: Path) -> bool:
    """Return whether ``run.json`` says that the rounded weights were trained."""
    recipe = run_record(folder).get("recipe", {})
    return bool(recipe.get("lora", {}).get("merge_aware", False))
