"""The record beside the outputs: what was run, on what, with which versions.

``RUN/recipe.yaml`` is the resolved recipe, which is a recipe again; ``RUN/run.json`` holds the
facts around it: versions, commit, hardware, the base's fingerprint, and how the run ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptoss_tune.files.atomic import write_text
from gptoss_tune.files.strict_json import read_object, refuse_other_kinds
from gptoss_tune.recipe import Recipe, load_recipe
from gptoss_tune.recipe.renamed import entry_in_new_name, recipe_in_new_names

RECORD = "run.json"
RECIPE = "recipe.yaml"
# What is looked up in a record that another process wrote, or another person.
_KINDS: dict[str, Any] = {
    "run_id": str,
    "status": str,
    "fingerprint": {},
    "changes": [{"step": int, "name": str}],
    "micro_batch": {"per_device_train_batch_size": int, "gradient_accumulation_steps": int},
    "base": {"name": str, "fingerprint": {"config": str, "weights": str}},
    "data": [{"path": str, "sha256": str}],
    "environment": {"libraries": {}, "processes": int},
    "hardware": {},
    "verification": [{}],
}


def read_record(run: Path) -> dict[str, Any]:
    """Return ``RUN/run.json``, or nothing where there is none yet.

    Raises:
        CheckpointError: It is not strict JSON, or holds something else than a record.
    """
    path = run / RECORD
    try:
        record = read_object(path)
    except FileNotFoundError:
        return {}
    record = in_new_names(record)
    refuse_other_kinds(path, record, _KINDS)
    return record


def in_new_names(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record, which may be of an earlier version, under the names of this one."""
    found = {("changes" if key == "drift" else key): value for key, value in record.items()}
    if isinstance(recipe := found.get("recipe"), dict):
        found["recipe"] = recipe_in_new_names(recipe)
    if isinstance(before := found.get("fingerprint"), dict):
        found["fingerprint"] = {entry_in_new_name(name): value for name, value in before.items()}
    if isinstance(changes := found.get("changes"), list):
        found["changes"] = [
            one | {"name": entry_in_new_name(one["name"])}
            if isinstance(one, dict) and isinstance(one.get("name"), str)
            else one
            for one in changes
        ]
    return found


def load_run_recipe(run: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return ``RUN/recipe.yaml`` with overrides laid over it; an earlier version's is read too.

    Raises:
        RecipeError: As ``load_recipe``.
    """
    return load_recipe(run / RECIPE, overrides, old_names=True)


def update_record(run: Path, **facts: Any) -> dict[str, Any]:
    """Merge ``facts`` into ``RUN/run.json`` and return the whole record."""
    record = read_record(run)
    record.update(facts, updated=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    write_text(run / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def note_verification(sources: list[str], command: str, verdict: dict[str, Any]) -> None:
    """Add what ``merge`` or ``verify`` found to the cards of the runs that were exported.

    Args:
        sources: What was exported: runs, their ``adapter`` folders, or adapters without a card.
        command: Which command looked.
        verdict: ``Verification.as_dict()``.
    """
    kept = {key: verdict[key] for key in ("folder", "passed", "checks")}
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for source in map(Path, sources):
        run = source if (source / RECORD).is_file() else source.parent
        # A parent folder counts for a run's own adapter only.
        if (run / RECORD).is_file() and (run == source or source.name == "adapter"):
            earlier = read_record(run).get("verification") or []
            noted = {"command": command, "time": now, **kept}
            update_record(run, verification=[*earlier, noted])


_SOURCE = {"path": str}


_EXPORT_KINDS: dict[str, Any] = {
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
            record = in_new_names(read_object(path))
            refuse_other_kinds(path, record, _EXPORT_KINDS)
            return record
    return {}


def wanted_survival(folder: Path) -> float | None:
    """Return the recipe's ``export.min_survival`` from ``run.json``; ``None`` where it has none."""
    return run_record(folder).get("recipe", {}).get("export", {}).get("min_survival")


def trained_merge_aware(folder: Path) -> bool:
    """Return whether ``run.json`` says that the rounded weights were trained."""
    recipe = run_record(folder).get("recipe", {})
    return bool(recipe.get("lora", {}).get("merge_aware", False))
