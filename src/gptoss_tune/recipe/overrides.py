"""``key=value`` laid over a recipe's document, with the override as the place of what it sets.

After this the checks cannot tell an override from a line of the file, so both get the same
messages. An override replaces one setting whole: merging into lists, or a mapping for a section,
would make the result depend on what the file happens to hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gptoss_tune.recipe.document import Document, is_unicode, read_value
from gptoss_tune.recipe.mistakes import KeyPath, Mistake, Place, dotted
from gptoss_tune.recipe.schema import SECTIONS


def lay_over(document: Document, overrides: Sequence[str]) -> None:
    """Put each override's value into the document; what is wrong with one becomes a mistake."""
    for number, override in enumerate(overrides, 1):
        place = Place(number, 0, 0, override)
        found = _lay_over_one(document, override, place)
        if found is not None:
            document.mistakes.append(Mistake(place, *found))


def _lay_over_one(
    document: Document, override: str, place: Place
) -> tuple[str, str, str, str] | None:
    """Put one value into the document, or return key, got, expected, todo of why it cannot be."""
    if not is_unicode(override):
        return "", "bytes that are no UTF-8", "text", "check the terminal's encoding"
    key, equals, text = (part.strip() for part in override.partition("="))
    path: KeyPath = tuple(key.split("."))
    if not equals or not all(path):
        return "", "no setting and value", "key=value", "write for example train.seed=1"
    name = dotted(path)
    if not text:
        return name, "no value", "key=value", f"write {name}=null, or {name}='\"\"' for no text"
    if path in SECTIONS:
        example = next(iter(SECTIONS[path].model_fields))
        return (
            name,
            "a value for a whole section",
            "one setting at a time",
            f"write for example {name}.{example}=...",
        )
    earlier = document.value_places.get(path)
    if earlier is not None and earlier.override:
        return (
            name,
            "the key a second time",
            "each key once",
            f"remove this or override {earlier.override}",
        )
    blocked = _put(document, path, place)
    if blocked is not None:
        whole = dotted(blocked)
        return name, f"a key below {whole}", "a setting, replaced whole", f"write {whole}=..."
    read, value = read_value(text, place)
    for found in read.mistakes:
        below = f"{name}{'.' if found.key[:1] not in {'', '['} else ''}{found.key}"
        document.mistakes.append(Mistake(place, below, found.got, found.expected, found.todo))
    for below in [*read.key_places, *read.value_places]:
        document.key_places.setdefault(path + below, place)
        document.value_places.setdefault(path + below, place)
    for below, spelled in read.spelled.items():
        document.spelled[path + below] = spelled
    if read.mistakes:
        document.refused.add(path)
    else:
        _mapping_above(document, path)[str(path[-1])] = value
    return None


def _put(document: Document, path: KeyPath, place: Place) -> KeyPath | None:
    """Make the sections above ``path`` and clear what stands there.

    Returns:
        The path of a value above that is no mapping, which blocks the way; None when all is well.
    """
    here: Any = document.values
    for depth, part in enumerate(path[:-1], 1):
        below = here.get(part)
        if below is None:
            below = here[part] = {}
            document.key_places.setdefault(path[:depth], place)
            document.value_places.setdefault(path[:depth], place)
        if not isinstance(below, dict):
            return path[:depth]
        here = below
    here.pop(path[-1], None)
    document.forget(path)
    document.key_places[path] = document.value_places[path] = place
    return None


def _mapping_above(document: Document, path: KeyPath) -> dict[str, Any]:
    here: Any = document.values
    for part in path[:-1]:
        here = here[part]
    return here
