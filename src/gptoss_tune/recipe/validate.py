"""Validation of a document against schema and rules: every finding a mistake with its place.

pydantic skips the checks of a whole model once one of its fields is wrong. Here the wrong fields
are taken out and the rules run on the rest, so a contradiction is reported in the same message as a
typo. A finding that only follows from another one is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from gptoss_tune.recipe.contradictions.contradiction import Contradiction
from gptoss_tune.recipe.hints import example_or_default, expected_and_todo, meant_by, unknown_key
from gptoss_tune.recipe.mistakes import KeyPath, Mistake, Place, dotted, shown
from gptoss_tune.recipe.recipe import SECTIONS, Recipe, section_of
from gptoss_tune.recipe.schema import METHODS, method_name
from gptoss_tune.recipe.yaml_reader import Document

# Sound values for required settings that are wrong or missing, so that the rules can run; no rule
# about these settings is reported then.
_STAND_INS: dict[str, dict[str, Any]] = {
    "model": {"name_or_path": "stand-in"},
    "data": {"train": "stand-in"},
    "train": {"output_dir": "stand-in"},
}


def findings(
    error: ValidationError, document: Document, values: dict[str, Any], fallback: Place
) -> list[Mistake]:
    """Return the mistakes in ``values``.

    Args:
        error: What pydantic said of them.
        document: Where they were written.
        values: The document's values, every section present.
        fallback: The place of what is not written at all.
    """
    found: list[Mistake] = []
    doubtful: set[KeyPath] = set(document.refused)
    missing: list[KeyPath] = []
    faulty: list[KeyPath] = []
    method = method_name(values["method"])
    for item in error.errors(include_url=False):
        location, kind = _without_method(item["loc"]), item["type"]
        if kind == "union_tag_invalid":
            location = (*location, "name")
            item["input"] = item["input"].get("name")
        if location[-1:] == ("[key]",):  # how pydantic says that a mapping's key is wrong
            location, kind = location[:-1], "extra_forbidden"
        if kind == "recipe_contradiction":
            continue
        faulty.append(location)
        if kind == "missing":
            missing.append((*_as_written(location[:-1], document), location[-1]))
            continue
        if kind == "extra_forbidden":
            path = (*_as_written(location[:-1], document), location[-1])
            got, (expected, todo) = "an unknown key", unknown_key(path, method)
            place = document.key_places.get(path, fallback)
            if meant := meant_by(path):
                doubtful.add(_path_of(meant))
        else:
            path = _as_written(location, document)
            got, place = shown(item["input"], document.spelled.get(path)), fallback
            place = document.value_places.get(path, fallback)
            if "ctx" in item and kind == "recipe_value":
                expected, todo = item["ctx"]["expected"], item["ctx"]["todo"]
            else:
                spelled = document.spelled.get(path)
                expected, todo = expected_and_todo(path, item["input"], spelled, method)
        doubtful.add(path)
        found.append(Mistake(place, dotted(path), got, expected, todo))
    for path in missing:
        if not _touches(path, doubtful):
            found.append(_missing(path, document, fallback))
    doubtful.update(missing)
    return found + _broken_rules(values, faulty, doubtful, document, fallback)


def _missing(path: KeyPath, document: Document, fallback: Place) -> Mistake:
    expected, _ = expected_and_todo(path, None, None)
    place = _place_of(path[:-1], document) or fallback
    return Mistake(place, dotted(path), "nothing", expected, example_or_default(path))


def _broken_rules(
    values: dict[str, Any],
    faulty: Iterable[KeyPath],
    doubtful: set[KeyPath],
    document: Document,
    fallback: Place,
) -> list[Mistake]:
    """Run the rules on the sound fields; leave out what involves a doubtful one."""
    found = []
    for broken in _contradictions(values, faulty):
        paths = [_as_written(_path_of(key), document) for key in broken.keys]
        if any(_touches(path, doubtful) for path in map(_path_of, broken.keys)):
            continue
        places = [document.key_places[path] for path in paths if path in document.key_places]
        place = places[0] if places else _place_of(paths[0], document) or fallback
        found.append(Mistake(place, dotted(paths[0]), broken.got, broken.expected, broken.todo))
    return found


def _contradictions(values: dict[str, Any], faulty: Iterable[KeyPath]) -> list[Contradiction]:
    """Return the rules that the sound fields break."""
    sound = {
        section: dict(values[section]) if isinstance(values.get(section), dict) else {}
        for section in Recipe.model_fields
    }
    for path in faulty:
        section = str(path[0])
        if section == "method":
            sound[section] = {}  # which settings it has hangs on its name, and no rule on them
        elif len(path) > 1:
            sound[section].pop(path[1], None)
    sections: dict[str, Any] = {
        name: section_of(name, settings).model_validate(_STAND_INS.get(name, {}) | settings)
        for name, settings in sound.items()
    }
    return Recipe.model_construct(**sections).contradictions()


def overruled(
    error: ValidationError, values: dict[str, Any]
) -> tuple[list[Contradiction], list[KeyPath]]:
    """Return what overrides may have made of a file that was sound: broken rules, unknown keys.

    Args:
        error: What pydantic said of the values.
        values: As in ``findings``.
    """
    faulty: list[KeyPath] = []
    unknown: list[KeyPath] = []
    for item in error.errors(include_url=False):
        if item["type"] != "recipe_contradiction":
            faulty.append(_without_method(item["loc"]))
        if item["type"] == "extra_forbidden":
            unknown.append(faulty[-1])
    broken = _contradictions(values, faulty)
    clear = [
        one for one in broken if not any(_touches(_path_of(key), set(faulty)) for key in one.keys)
    ]
    return clear, unknown


def _without_method(location: KeyPath) -> KeyPath:
    """Return a location without the name of the method that pydantic puts into it."""
    tagged = location[:1] == ("method",) and len(location) > 1 and location[1] in METHODS
    return (*location[:1], *location[2:]) if tagged else location


def _touches(path: KeyPath, doubtful: set[KeyPath]) -> bool:
    """Return whether ``path`` is, holds or lies in a doubtful value."""
    return any(path[: len(d)] == d or d[: len(path)] == path for d in doubtful)


def _as_written(location: KeyPath, document: Document) -> KeyPath:
    """Return the written path of a location in the checked values.

    ``train: a.jsonl`` is checked as ``train: [{path: a.jsonl}]``: an index that nobody wrote is
    dropped again, and so is the unwritten rest below it.
    """
    path: KeyPath = ()
    for part in location:
        if (*path, part) in document.value_places or path == () or path in SECTIONS:
            path = (*path, part)
    return path


def _place_of(path: KeyPath, document: Document) -> Place | None:
    """Return the key's place of the longest written part of ``path``."""
    for length in range(len(path), 0, -1):
        if place := document.key_places.get(path[:length]):
            return place
    return None


def _path_of(key: str) -> KeyPath:
    """Return ``("data", "train", 0, "name")`` for ``data.train[0].name``."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", key))
