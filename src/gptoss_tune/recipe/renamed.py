"""Renamed settings: an old key is refused with its new name, the files of an old run are read.

What a person writes is refused, so that a setting has one name in all recipes; what a program wrote
beside a run is read under the new names, so that the run goes on. Accepting both names everywhere
was the alternative: two recipes that say the same then look different for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from gptoss_tune.recipe.mistakes import KeyPath, Mistake, dotted, plain
from gptoss_tune.recipe.yaml_reader import Document

T = TypeVar("T")

RENAMED = {
    "world": "distributed",
    "world.processes": "distributed.num_processes",
    "world.spread": "distributed.strategy",
    "world.timeout_seconds": "distributed.timeout_seconds",
    "train.checkpointing": "train.activation_checkpointing",
    "lora.start_from": "lora.init_from",
}
"""The one table of renamed sections and settings, old -> new.

The errors for old keys are made from it, and old records, recipes and fingerprints of runs are read
through it. A section stays together: every setting below ``world`` is one of ``distributed``.
"""
RENAMED_ENTRIES = {"start_from": "init_from", "spread": "strategy"}
"""Likewise, of a run's fingerprint what stands there for a setting."""

RENAMED_KEY = "a key that was renamed"
_PATHS: dict[KeyPath, KeyPath] = {
    tuple(old.split(".")): tuple(new.split(".")) for old, new in RENAMED.items()
}


def new_path(path: KeyPath) -> KeyPath | None:
    """Return where the setting or section at ``path`` stands now; ``None``: where it stood."""
    for length in (2, 1):
        new = _PATHS.get(path[:length])
        if new is not None:
            return new + path[length:]
    return None


def entry_in_new_name(name: str) -> str:
    """Return what an entry of a run's fingerprint is called now."""
    return RENAMED_ENTRIES.get(name) or RENAMED.get(name, name)


def recipe_in_new_names(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's JSON, of this or an earlier version, under today's names."""
    found: dict[str, Any] = {}
    for section, settings in recipe.items():
        name = RENAMED.get(section, section)
        if isinstance(settings, dict):
            there = found.get(name)
            found[name] = there if isinstance(there, dict) else {}
            for key, value in settings.items():
                path = new_path((section, key)) or (name, key)
                found[name][path[1]] = value
        else:
            found.setdefault(name, settings)
    return found


def text_of(spelled: str | None) -> str:
    """Return a value for advice how to write its setting; dots for one that is not shown."""
    return spelled if spelled and plain(spelled) == spelled else "..."


def move_to_new_names(document: Document) -> list[Mistake]:
    """Move what stands under old keys below the new ones; return a mistake for each old key.

    A moved value is checked like any other, so what else is wrong comes in the same message. Where
    the new key is written too, its value stays.
    """
    mistakes = list(_old_keys(document))
    places = document.key_places
    for old in [path for path in places if len(path) == 2 and new_path(path) in places]:
        document.forget(old)
        document.values[str(old[0])].pop(old[1], None)
    document.values = recipe_in_new_names(document.values)
    document.key_places = _moved(document.key_places)
    document.value_places = _moved(document.value_places)
    document.spelled = _moved(document.spelled)
    document.refused = {new_path(path) or path for path in document.refused}
    return mistakes


def _moved(table: dict[KeyPath, T]) -> dict[KeyPath, T]:
    moved = {new: entry for path, entry in table.items() if (new := new_path(path)) is not None}
    return moved | {path: entry for path, entry in table.items() if new_path(path) is None}


def _old_keys(document: Document) -> Iterator[Mistake]:
    places = document.key_places
    for old, place in places.items():
        new = _PATHS.get(old)
        if new is None:
            continue
        if len(old) == 1:
            # The settings below are named each; a section without any is named itself.
            if not any(path[:1] == old and path in _PATHS for path in places if len(path) == 2):
                got = "a section that was renamed"
                yield Mistake(place, dotted(old), got, dotted(new), f"write '{new[0]}:'")
            continue
        todo = f"write '{new[1]}: {text_of(document.spelled.get(old))}' under '{new[0]}:'"
        if new in places:
            todo = f"remove it, {dotted(new)} is there too"
        yield Mistake(place, dotted(old), RENAMED_KEY, dotted(new), todo)
