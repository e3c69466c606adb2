"""``run.json`` as an export reads it: of the run an adapter belongs to, in the kinds expected.

A record comes with an adapter, and the adapter may come from anyone. What is looked up in it later
is checked here once, so that a list where a mapping should be is a message and not a traceback.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.json_file import read_object

_SOURCE = {"path": str}
# What is looked up; a list stands for its entries, and null for nothing at all.
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
            _check(path, record, _KINDS, "")
            return record
    return {}


def wanted_survival(folder: Path) -> float | None:
    """Return the recipe's ``export.min_survival`` from ``run.json``; ``None`` where it has none."""
    return run_record(folder).get("recipe", {}).get("export", {}).get("min_survival")


def trained_merge_aware(folder: Path) -> bool:
    """Return whether ``run.json`` says that the rounded weights were trained."""
    recipe = run_record(folder).get("recipe", {})
    return bool(recipe.get("lora", {}).get("merge_aware", False))


def _check(path: Path, value: object, kind: Any, name: str) -> None:
    """Refuse a value of another kind; a null mapping becomes an absent one."""
    if value is None and not isinstance(kind, dict):
        return
    plain: tuple[type, ...] = () if isinstance(kind, dict | list) else (kind,)
    if isinstance(kind, dict) and isinstance(value, dict):
        for key, inner in kind.items():
            if isinstance(inner, dict) and value.get(key) is None:
                value.pop(key, None)
            if key in value:
                _check(path, value[key], inner, f"{name}.{key}" if name else key)
    elif isinstance(kind, list) and isinstance(value, list):
        for number, entry in enumerate(value):
            _check(path, entry, kind[0], f"{name}[{number}]")
    elif not isinstance(value, (*plain, int) if float in plain else plain):
        raise CheckpointError(
            f"{path}: {name} is {ascii(value)[:60]}, no record of a run has that; restore the file "
            "or remove it"
        )
