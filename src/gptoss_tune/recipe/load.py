"""The recipe loader: YAML and ``key=value`` overrides to one Recipe, all mistakes in one message.

The steps: read the file, lay the overrides over it, check every field, then check the rules between
the fields that are sound. Nothing is raised before the last step, so one look shows every mistake
with its line, and an override is checked and reported exactly as a line of the file is. It replaces
one setting whole: merging into lists, or a mapping for a section, would make the result depend on
what the file happens to hold. A shipped recipe is read by its name too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gptoss_tune.errors import say_once
from gptoss_tune.files.regular import kind_of
from gptoss_tune.recipe.contradictions.contradiction import Contradiction
from gptoss_tune.recipe.mistakes import (
    KeyPath,
    Mistake,
    Place,
    RecipeMistakes,
    dotted,
    plain,
    shown,
)
from gptoss_tune.recipe.recipe import SECTIONS, Recipe
from gptoss_tune.recipe.renamed import (
    RENAMED,
    RENAMED_KEY,
    move_to_new_names,
    new_path,
    text_of,
)
from gptoss_tune.recipe.validate import findings, overruled
from gptoss_tune.recipe.yaml_reader import (
    LARGEST_FILE,
    Document,
    is_unicode,
    read_document,
    read_value,
)
from gptoss_tune.shipped import (
    name_of_recipe,
    nearest_recipes,
    seen_from_here,
    shipped_data,
    shipped_recipe,
)


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    old_names: bool = False,
    say: Callable[[str], None] = say_once,
) -> Recipe:
    """Return the recipe in a YAML file with ``key=value`` overrides laid over it.

    An override names one setting with dots, ``train.learning_rate=1e-4``, and replaces its value
    whole; ``null``, ``[a, b]`` and quotes mean what they mean in YAML. What it leaves of the file
    without effect is laid off.

    Args:
        path: The recipe's file, at most 64 KiB of UTF-8, or a shipped recipe's name, such as
            ``gpt-oss-20b/qlora``. Paths inside a recipe are relative to the current directory, not
            to this file; a shipped recipe finds its ``data/`` where it is installed.
        overrides: Each ``key=value``; the same key twice is a mistake.
        old_names: Read keys of the file that were renamed since, as in a recipe beside a run.
        say: Takes a line for each override that laid settings off; default: written to stderr.

    Raises:
        RecipeError: The file cannot be read, or the recipe has mistakes; the message lists all,
            each with ``file:line:column`` or the override's number, and is a ``RecipeMistakes``.
    """
    name = recipe_path(path)
    document = read_document(file_text(name), lambda line, column: Place(0, line, column, name))
    if name_of_recipe(Path(name)) is not None:
        document.values = _with_shipped_data(document.values)
    renamed = move_to_new_names(document)
    document.mistakes += [] if old_names else renamed
    lay_over(document, overrides)
    return _checked(document, name, lays_off=bool(overrides), say=say)


def recipe_of_settings(settings: Sequence[str], name: str) -> Recipe:
    """Return the recipe that ``key=value`` settings alone make, as a form gives them.

    Raises:
        RecipeError: As ``load_recipe``; ``name`` is what the recipe is called.
    """
    document = Document()
    lay_over(document, settings)
    return _checked(document, name)


def read_recipe_values(path: str | Path) -> dict[str, Any]:
    """Return the values that a recipe's file holds, as far as it can be read, unchecked.

    Raises:
        RecipeError: The file cannot be read.
    """
    name = recipe_path(path)
    document = read_document(file_text(name), lambda line, column: Place(0, line, column, name))
    shipped = name_of_recipe(Path(name)) is not None
    return _with_shipped_data(document.values) if shipped else document.values


def _checked(
    document: Document,
    name: str,
    *,
    lays_off: bool = False,
    say: Callable[[str], None] = say_once,
) -> Recipe:
    """Return the recipe of a document; ``lays_off``: without what its overrides make useless.

    Raises:
        RecipeMistakes: With every mistake in it.
    """
    if not document.readable:
        raise RecipeMistakes(name, document.mistakes)
    laid_off: list[tuple[Place, str]] = []
    while True:
        values = _with_sections(document)
        try:
            recipe = Recipe.model_validate(values)
        except ValidationError as error:
            more = _lay_off(document, *overruled(error, values)) if lays_off else []
            laid_off += more
            if more:
                continue
            found = findings(error, document, values, Place(0, 1, 1, name))
            raise RecipeMistakes(name, document.mistakes + found) from None
        break
    if document.mistakes:
        raise RecipeMistakes(name, document.mistakes)
    for note in _laid_off_in_words(laid_off):
        say(note)
    return recipe


def places(path: str | Path, overrides: Sequence[str] = ()) -> dict[KeyPath, Place]:
    """Return where each setting of a sound recipe was written, in its file or as an override.

    Args:
        path: The recipe's file.
        overrides: As for ``load_recipe``.
    """
    name = recipe_path(path)
    document = read_document(file_text(name), lambda line, column: Place(0, line, column, name))
    move_to_new_names(document)
    lay_over(document, overrides)
    return document.key_places


def recipe_path(path: str | Path) -> str:
    """Return the file that a path or a shipped recipe's name means, as seen from here.

    A local file is always itself; a name that is neither is returned as it came, and cannot be
    read.
    """
    name = str(path)
    try:
        if os.path.lexists(name) and not os.path.isdir(name):
            return name
        found = shipped_recipe(name)
    except (OSError, ValueError):  # no path at all, which is said when it is opened
        return name
    return name if found is None else seen_from_here(found)


def _with_shipped_data(value: Any) -> Any:
    """Return the values of a shipped recipe with the installation's files for ``data/...``."""
    if isinstance(value, dict):
        return {key: _with_shipped_data(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_with_shipped_data(entry) for entry in value]
    found = shipped_data(value) if isinstance(value, str) else None
    return value if found is None else seen_from_here(found)


def file_text(name: str) -> str:
    """Return a recipe's text; every way in which a file cannot be read is a RecipeError."""

    def refusal(
        got: str, expected: str, todo: str, line: int = 0, column: int = 0
    ) -> RecipeMistakes:
        place = Place(0, line, column, name)
        return RecipeMistakes(name, [Mistake(place, "", got, expected, todo)])

    try:
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            # A pipe that nobody writes to is waited at for ever, and each rank reads the recipe.
            todo = "save the recipe in a file and name that"
            raise refusal(kind_of(mode), "a recipe's file", todo)
        with open(name, "rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        near = " or ".join(nearest_recipes(name))
        todo = f"did you mean {near}? " if near else ""
        todo += "'gptoss-tune recipes' lists the shipped ones"
        raise refusal("no such file", "a recipe", todo) from None
    except IsADirectoryError:
        raise refusal("a folder", "a recipe's file", "name a .yaml file in it") from None
    except RecipeMistakes:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise refusal(f"a file that cannot be read ({reason})", "a recipe", "check it") from None
    if len(raw) > LARGEST_FILE:
        raise refusal(f"over {LARGEST_FILE} bytes", "a recipe", "name the recipe, not the data")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = len(before) - (before.rfind(b"\n") + 1) + 1
        raise refusal(
            f"the byte 0x{raw[error.start]:02x}",
            "UTF-8",
            "save it as UTF-8",
            line=line,
            column=column,
        ) from None


def _with_sections(document: Document) -> dict[str, Any]:
    """Return the values with an empty mapping for each section that is absent or null.

    A section whose every line is commented out is read as meant, and what a missing section
    requires is then reported key by key.
    """
    values = dict(document.values)
    for path in SECTIONS:  # outer sections come first
        above: Any = values
        for part in path[:-1]:
            above = above[part] if isinstance(above, dict) else None
        if isinstance(above, dict) and above.get(path[-1]) is None:
            above[path[-1]] = {}
    return values


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
    new = new_path(path)
    if new in SECTIONS:
        example = f"{dotted(new)}.{next(iter(SECTIONS[new].model_fields))}"
        return name, "a section that was renamed", dotted(new), f"write for example {example}=..."
    if new is not None:
        if dotted(path[:2]) in RENAMED:
            todo = f"write {dotted(new)}={text_of(text)}"
            document.mistakes.append(Mistake(place, name, RENAMED_KEY, dotted(new), todo))
        path, name = new, dotted(new)
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


def _lay_off(
    document: Document, broken: Iterable[Contradiction], unknown: Iterable[KeyPath]
) -> list[tuple[Place, str]]:
    """Take out of a document what its file gives and an override left without effect.

    Where a rule says that two settings cannot stand together, one written in the file and one given
    as an override, the override is the later word: the file's goes back to its default, if the rule
    says that it may. Asking for one more override, which takes back a line that nobody looked at,
    was the alternative.

    Args:
        document: The file with the overrides laid over it; changed in place.
        broken: The rules it breaks.
        unknown: Keys that a section does not know: an override may name another method.

    Returns:
        The place of the override, and what was taken out for it.
    """
    found = []
    for path in unknown:
        if path[0] == "method":
            found += _without(document, path, [("method", "name")])
    for contradiction in broken:
        involved = [tuple(key.split(".")) for key in contradiction.keys]
        for key in contradiction.yields:
            found += _without(document, tuple(key.split(".")), involved)
    return found


def _without(
    document: Document, path: KeyPath, involved: Iterable[KeyPath]
) -> list[tuple[Place, str]]:
    """Take out one setting, if the file gives it and an override one of those it stands against."""
    place = document.key_places.get(path)
    others = (document.key_places.get(other) for other in involved if other != path)
    override = next((other for other in others if other and other.override), None)
    if place is None or place.override or override is None:
        return []
    above = _mapping_above(document, path)
    written = shown(above.pop(str(path[-1])), document.spelled.get(path))
    document.forget(path)
    return [(override, f"{dotted(path)}: {written} (line {place.line})")]


def _laid_off_in_words(found: Iterable[tuple[Place, str]]) -> Iterator[str]:
    """Yield a line for each override that laid something off."""
    by_override: dict[Place, list[str]] = {}
    for override, setting in found:
        by_override.setdefault(override, []).append(setting)
    for override, settings in sorted(by_override.items()):
        yield f"note: {plain(override.origin)} lays off the recipe's {' and '.join(settings)}"
