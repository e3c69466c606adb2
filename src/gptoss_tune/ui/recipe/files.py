"""Recipes' files: the shipped ones, those below the current folder, and where one is saved.

Paths in a recipe are relative to the current folder, so that is where its file belongs. Nothing
outside it is read or written, the shipped recipes apart.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from gptoss_tune.errors import MachineError, RecipeError
from gptoss_tune.files.atomic import disk_errors, write_text
from gptoss_tune.run.folder import RECORD
from gptoss_tune.shipped import shipped

_ENDS: Final = (".yaml", ".yml")
_MOST: Final = 200
_DEEPEST: Final = 3
_MOST_FOLDERS: Final = 2000


@dataclass(frozen=True)
class RecipeFile:
    """A recipe to choose.

    Attributes:
        path: As one would type it here.
        name: What the list calls it: a shipped one that is not below the current folder has a path
            that nobody wants to read.
        about: Its first line, where that is a comment.
    """

    path: str
    name: str
    about: str


class FileExists(RecipeError):
    """A recipe would be written over a file; the page asks first."""


def shipped_recipes() -> list[RecipeFile]:
    """Return the recipes that come with the package."""
    top = shipped("recipes")
    paths = (path for path in sorted(top.rglob("*.yaml")) if path.parent.name != "accelerate")
    found = []
    for path in paths:
        below = path.relative_to(top).with_suffix("").as_posix()
        name = typed(path) if path.resolve().is_relative_to(_here()) else below
        found.append(RecipeFile(typed(path), name, _about(path)))
    return found


def local_recipes() -> list[RecipeFile]:
    """Return the recipes below the current folder that are not shipped ones."""
    top, here = shipped("recipes").resolve(), Path.cwd().resolve()
    found: list[RecipeFile] = []
    for path in _yaml_files(here):
        if len(found) == _MOST:
            break
        if not path.is_relative_to(top) and _looks_like_one(path):
            found.append(RecipeFile(typed(path), typed(path), _about(path)))
    return found


def chosen(name: str) -> Path:
    """Return the file of a recipe that the page may open.

    Raises:
        RecipeError: It is neither a shipped one nor below the current folder.
    """
    path = _absolute(name)
    if not any(path.is_relative_to(top) for top in (_here(), shipped("recipes").resolve())):
        raise RecipeError(
            f"{name}: lies outside of {_here()}, where this page was started; start it there, or "
            "copy the recipe here"
        )
    if path.suffix not in _ENDS:
        raise RecipeError(f"{name}: is no recipe's file; expected a name that ends in .yaml")
    return path


def save(name: str, text: str, *, overwrite: bool) -> str:
    """Write a recipe and return its path as one would type it here.

    Args:
        name: Below the current folder.
        text: The recipe.
        overwrite: The user was asked and wants a file of this name replaced.

    Raises:
        RecipeError: The name is none for a recipe here.
        FileExists: There is such a file.
        MachineError: It cannot be written.
    """
    path = _absolute(name)
    if not name.strip() or path.suffix not in _ENDS or not path.is_relative_to(_here()):
        raise RecipeError(
            f"{name!r}: expected a path below {_here()} that ends in .yaml, such as my-recipe.yaml"
        )
    if path.is_relative_to(shipped("recipes").resolve()):
        raise RecipeError(f"{name}: is where the shipped recipes are; choose another name")
    if os.path.lexists(path) and not overwrite:
        raise FileExists(f"{typed(path)} is there already")
    if path.is_dir():
        raise RecipeError(f"{name}: is a folder; choose another name")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return typed(path)


def typed(path: Path) -> str:
    """Return a path relative to the current folder where it lies below it."""
    here = _here()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _here() -> Path:
    try:
        return Path.cwd().resolve()
    except OSError as error:
        raise MachineError(f"the current folder is gone ({error.strerror})") from None


def _absolute(name: str) -> Path:
    if "\0" in name or len(name) > 4096:
        raise RecipeError("a name of a file cannot be that")
    try:
        # Links are followed: what counts is where the file is.
        return Path(_here() / PurePath(name.strip())).resolve()
    except (OSError, RuntimeError):
        raise RecipeError(f"{name!r}: is no path that can be followed") from None


def _yaml_files(top: Path) -> Iterator[Path]:
    """Yield the YAML files below a folder, not through links, nor out of runs."""
    left, waiting = _MOST_FOLDERS, [(top, 0)]
    while waiting and left:
        folder, depth = waiting.pop()
        left -= 1
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
            if any(entry.name == RECORD for entry in listed):
                continue
            for entry in listed:
                if entry.name.startswith("."):
                    continue
                if entry.is_file(follow_symlinks=False) and entry.name.endswith(_ENDS):
                    yield Path(entry.path)
            waiting += [
                (Path(entry.path), depth + 1)
                for entry in reversed(listed)
                if depth < _DEEPEST
                and not entry.name.startswith(".")
                and entry.is_dir(follow_symlinks=False)
            ]


def _looks_like_one(path: Path) -> bool:
    """Return whether a file has the sections that every recipe has."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(65_536).splitlines()
    except OSError:
        return False
    said = {line.partition(":")[0] for line in lines if line[:1].isalpha()}
    return {"model", "data", "train"} <= said


def _about(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = file.readline(400).strip()
    except OSError:
        return ""
    return first.lstrip("#").strip() if first.startswith("#") else ""
