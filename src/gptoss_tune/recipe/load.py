"""YAML and ``key=value`` overrides -> one Recipe; all mistakes in one message.

The steps: read the file, lay the overrides over it, check every field, then check the rules between
the fields that are sound. Nothing is raised before the last step, so one look shows every mistake
with its line, and an override is checked and reported exactly as a line of the file is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gptoss_tune.recipe.document import LARGEST_FILE, Document, read_document
from gptoss_tune.recipe.findings import findings
from gptoss_tune.recipe.mistakes import Mistake, Place, RecipeMistakes
from gptoss_tune.recipe.overrides import lay_over
from gptoss_tune.recipe.schema import SECTIONS, Recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a YAML file with ``key=value`` overrides laid over it.

    An override names one setting with dots, ``train.learning_rate=1e-4``, and replaces its value
    whole; ``null``, ``[a, b]`` and quotes mean what they mean in YAML.

    Args:
        path: The recipe's file, at most 64 KiB of UTF-8. Paths inside a recipe are relative to the
            current directory, not to this file.
        overrides: Each ``key=value``; the same key twice is a mistake.

    Raises:
        RecipeError: The file cannot be read, or the recipe has mistakes; the message lists all,
            each with ``file:line:column`` or the override's number, and is a ``RecipeMistakes``.
    """
    name = str(path)
    document = read_document(_text_of(name), lambda line, column: Place(0, line, column, name))
    lay_over(document, overrides)
    if not document.readable:
        raise RecipeMistakes(name, document.mistakes)
    values = _with_sections(document)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        found = findings(error, document, values, Place(0, 1, 1, name))
        raise RecipeMistakes(name, document.mistakes + found) from None
    if document.mistakes:
        raise RecipeMistakes(name, document.mistakes)
    return recipe


def _text_of(name: str) -> str:
    """Return a recipe's text; every way in which a file cannot be read is a RecipeError."""

    def refusal(
        got: str, expected: str, todo: str, line: int = 0, column: int = 0
    ) -> RecipeMistakes:
        place = Place(0, line, column, name)
        return RecipeMistakes(name, [Mistake(place, "", got, expected, todo)])

    try:
        with open(name, "rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise refusal(
            "no such file", "a recipe", "'gptoss-tune recipes' lists the shipped ones"
        ) from None
    except IsADirectoryError:
        raise refusal("a folder", "a recipe's file", "name a .yaml file in it") from None
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
