"""Package data: where the shipped recipes and data lie, and the recipes by name.

A wheel carries ``recipes/`` and ``data/`` inside the package as ``_recipes`` and ``_data``; an
editable install leaves them at the top of the checkout. Only this module knows the difference. A
recipe is called by its place below ``recipes/``, ``gpt-oss-20b/qlora``; the data that it names as
``data/...`` are those of the installation, from whatever folder it is used.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]
_DATA = "data/"
_IN_TEXT = re.compile(r"(?<=[\s\[,])data/[\w./-]+")
_BARE = re.compile(r"[\w./+@~:\\-]+", re.ASCII)
_SCHEMA = "$schema=../recipe.schema.json"


def shipped(folder: Literal["recipes", "data"]) -> Path:
    """Return the folder ``recipes`` or ``data`` as installed.

    Raises:
        FileNotFoundError: Neither the wheel's copy nor the checkout's folder is there.
    """
    found = _installed(folder)
    if found is None:
        raise FileNotFoundError(
            f"the shipped folder '{folder}' is at none of "
            f"{', '.join(map(str, _candidates(folder)))}; reinstall gptoss-tune"
        )
    return found


def _candidates(folder: str) -> tuple[Path, Path]:
    return (_PACKAGE / f"_{folder}", _CHECKOUT / folder)


def _installed(folder: str) -> Path | None:
    return next((place for place in _candidates(folder) if place.is_dir()), None)


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes: ``gpt-oss-20b/qlora`` and the others."""
    folder = _installed("recipes")
    if folder is None:  # a package taken out of its wheel still reads its user's recipes
        return []
    paths = (path.relative_to(folder) for path in folder.rglob("*.yaml"))
    return sorted(p.with_suffix("").as_posix() for p in paths if p.parts[0] != "accelerate")


def shipped_recipe(name: str) -> Path | None:
    """Return the file of a shipped recipe; ``None`` where none has this name.

    Args:
        name: ``gpt-oss-20b/qlora``, with or without ``recipes/`` and ``.yaml``.
    """
    plain = _plain(name)
    return shipped("recipes") / f"{plain}.yaml" if plain in recipe_names() else None


def nearest_recipes(name: str) -> list[str]:
    """Return the names of shipped recipes that ``name`` may be meant for, the likeliest first."""
    plain, names = _plain(name), recipe_names()
    ends = [known for known in names if plain in (known.split("/")[-1], known.split("/")[0])]
    return ends or difflib.get_close_matches(plain, names, n=3, cutoff=0.7)


def name_of_recipe(path: Path) -> str | None:
    """Return the name of the shipped recipe that a file is; ``None`` for any other file."""
    folder, real = _installed("recipes"), path.resolve()
    if folder is None or not real.is_relative_to(folder.resolve()):
        return None
    return _plain(real.relative_to(folder.resolve()).as_posix())


def shipped_data(path: str) -> Path | None:
    """Return the shipped file or folder that a recipe calls ``data/...``; ``None`` for others."""
    if not path.startswith(_DATA):
        return None
    found = shipped("data") / path.removeprefix(_DATA)
    return found if found.exists() else None


def recipe_text(recipe: Path, folder: Path) -> str:
    """Return the text of a shipped recipe for a copy, comments kept, with paths that lead back.

    Args:
        recipe: Its file.
        folder: Where the copy will lie, for the schema that its editor reads; its data are seen
            from the current folder, as those of any recipe.
    """
    schema = shipped("recipes") / "recipe.schema.json"
    if schema.is_relative_to(folder.resolve()):
        schema = schema.relative_to(folder.resolve())
    text = recipe.read_text(encoding="utf-8").replace(_SCHEMA, f"$schema={schema}")

    def leading_back(match: re.Match[str]) -> str:
        found = shipped_data(match[0])
        path = match[0] if found is None else seen_from_here(found)
        return path if _BARE.fullmatch(path) else json.dumps(path, ensure_ascii=False)

    return _IN_TEXT.sub(leading_back, text)


def seen_from_here(path: Path) -> str:
    """Return a path relative to the current folder where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _plain(name: str) -> str:
    """Return a recipe's name without ``./``, ``recipes/`` and ``.yaml``, with forward slashes."""
    plain = name.replace("\\", "/").removeprefix("./").removeprefix("recipes/")
    return plain.removesuffix(".yaml").removesuffix(".yml")
