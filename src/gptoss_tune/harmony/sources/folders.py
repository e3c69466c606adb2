"""A path of a recipe -> the files it means: a file, a folder, a pattern, or a dataset on the Hub.

A folder is read in the order of its names, without hidden files and without what ``datasets``
writes beside the data; its .txt files are documents where it holds nothing but such files. Where a
folder holds several splits, the source says which (``splits.py``).
"""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.sources.files import READERS, format_suffix
from gptoss_tune.harmony.sources.splits import chosen_files
from gptoss_tune.recipe.schema.value_types import is_hub_name

MOST_FILES: Final = 100_000
"""Files that one source may mean; a shard of a large dataset has tens of megabytes."""
MOST_ENTRIES: Final = 1_000_000
"""Entries of folders that are looked at for them."""
_NEARLY: Final = 0.85
"""Likeness from which a name with an ending is a file's with a slip, and no dataset's."""
_WHOLE_MACHINE: Final = ("/proc", "/sys", "/dev")
_ABOUT_DATA: Final = ("readme", "license", "licence", "copying", "notice", "changelog")
"""Texts that are no documents in a folder of documents."""
_BESIDE_DATA: Final = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json")


def find_files(
    path: str, *, name: str | None = None, split: str | None = None
) -> list[tuple[Path, str]] | None:
    """Return the files a local path means, with their names; None for a dataset on the Hub.

    Args:
        path: As the recipe spells it.
        name: Configuration of a folder whose card names several.
        split: Split of a folder that holds several.

    Raises:
        DataError: The path means no file, or a choice that has to be made is not.
    """
    place = Path(path)
    if place.is_dir():
        return _of_folder(place, path, name, split)
    found: list[tuple[Path, str]]
    if place.is_file():
        found = [(place, path)]
    elif place.exists():
        raise DataError(
            f"{path}: is a pipe or a device; expected a data file, write the rows to one first"
        )
    elif glob.has_magic(path):
        found = [(Path(file), file) for file in sorted(_matching(path))]
        if not found:
            raise DataError(f"{path}: no file matches (looked in {Path.cwd()})")
    elif is_hub_name(path) and format_suffix(path) not in READERS and not _nearly_here(place):
        return None
    else:
        raise DataError(_missing(place, path))
    if name is not None or split is not None:
        told = "split" if split is not None else "name"
        raise DataError(
            f"{path}: a {told} is set, and a file has none; remove {told}, or name a folder"
        )
    return found


def _nearly_here(place: Path) -> bool:
    """Return whether a name is that of a data file here but for a slip, ``my.jsnl``."""
    if place.parent != Path() or not place.suffix:
        return False
    names = [file.name for file in Path().iterdir() if format_suffix(file.name) in READERS]
    return bool(difflib.get_close_matches(place.name, names, n=1, cutoff=_NEARLY))


def _missing(place: Path, path: str) -> str:
    folder = place.parent
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(place.name, names, n=1)
    hint = f"; did you mean {str(folder / near[0])!r}?" if near else ""
    return (
        f"{path}: no such file{hint} (looked in {Path.cwd()}; paths are relative to the current "
        "directory)"
    )


def _of_folder(
    place: Path, path: str, name: str | None, split: str | None
) -> list[tuple[Path, str]]:
    _refuse_whole_machine(place, path)
    files = sorted(_data_files(place, path))
    rows = [file for file in files if format_suffix(file) != ".txt"]
    # Texts beside rows are notes and licences.
    files = rows or [file for file in files if file.stem.lower() not in _ABOUT_DATA]
    if not files:
        raise DataError(f"{path}: the folder holds no {', '.join(READERS)} file; add one")
    return [(file, str(file)) for file in chosen_files(place, path, files, name=name, split=split)]


def _data_files(place: Path, path: str) -> Iterator[Path]:
    """Yield the data files of a folder and of those in it; links to folders are not followed."""
    entries = found = 0
    for parent, folders, names in os.walk(place, onerror=_refuse_unlisted):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        entries += len(folders) + len(names)
        beside = (*_BESIDE_DATA, "state.json") if "dataset_info.json" in names else _BESIDE_DATA
        for file in (Path(parent, name) for name in names):
            if file.name.startswith(".") or format_suffix(file) not in READERS:
                continue
            if file.name in beside:
                continue
            if file.exists() and not file.is_file():
                raise DataError(
                    f"{file}: is a pipe or a device; expected a data file, remove it from the "
                    "folder"
                )
            if file.is_file():
                found += 1
                yield file
        if entries > MOST_ENTRIES or found > MOST_FILES:
            raise DataError(_too_many(path))


def _refuse_unlisted(error: OSError) -> None:
    """A folder that cannot be listed would be left out without a word."""
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}); check its permissions, or name "
        "the files"
    )


def _matching(pattern: str) -> Iterator[str]:
    """Yield the files that a pattern matches.

    Raises:
        DataError: It looks through the whole machine, or matches more than a source may mean.
    """
    fixed = pattern[: len(pattern) - len(pattern.lstrip("/"))] or "."
    for part in Path(pattern).parts:
        if glob.has_magic(part):
            break
        fixed = os.path.join(fixed, part)
    if "**" in pattern:
        _refuse_whole_machine(Path(fixed), pattern)
    for number, file in enumerate(glob.iglob(pattern, recursive=True)):
        if number > MOST_FILES:
            raise DataError(_too_many(pattern))
        if Path(file).is_file():
            yield file


def _refuse_whole_machine(folder: Path, path: str) -> None:
    whole = Path(os.path.realpath(folder))
    if whole == Path(whole.anchor) or str(whole) in _WHOLE_MACHINE:
        raise DataError(
            f"{path}: would look through {whole}, all of this machine; name the "
            "folder that holds the data"
        )


def _too_many(path: str) -> str:
    return (
        f"{path}: means more than {MOST_FILES:,} files, or {MOST_ENTRIES:,} entries to look "
        "through; name the folder that holds the data"
    )
