"""The files of one split, of a folder that holds several.

A folder is often a copy of a dataset: files named after their split (``train-00000-of-00001``,
``data/test.jsonl``), a card whose front matter names the files of each configuration and split, or
what ``save_to_disk`` wrote. Reading all of it as one set would train on what others hold out, so a
folder with several splits is read by the one that the source names, and not without.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from gptoss_tune.errors import CheckpointError, DataError
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.harmony.fields import shown

LONGEST_CARD: Final = 1 << 20
"""Characters of a README.md that are read for its front matter."""
UNNAMED: Final = "(no split)"
_WORDS: Final = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD: Final = {word: split for split, words in _WORDS.items() for word in words}
_SHARD: Final = re.compile(r"(?:.*-)?([A-Za-z]\w*)-\d{5}-of-\d{5}\.")


def chosen_files(
    place: Path, path: str, files: Sequence[Path], *, name: str | None, split: str | None
) -> list[Path]:
    """Return the files of a folder that a source means.

    Args:
        place: The folder.
        path: What to call it in messages.
        files: Its data files, in order.
        name: Configuration that the source names.
        split: Split that it names.

    Raises:
        DataError: The folder does not have them, or has several and the source names none.
    """
    saved = _saved_splits(place, path)
    if saved is not None:
        _refuse_name(path, name)
        return _of_split(path, saved, split)
    configs = _configurations(place, path)
    if configs:
        found = _of_configuration(place, path, files, configs, name)
        return _of_split(path, found, split)
    _refuse_name(path, name)
    return _of_split(path, _by_name(place, files), split)


def _refuse_name(path: str, name: str | None) -> None:
    if name is not None:
        raise DataError(
            f"{path}: is a folder here, and no README.md of it names configurations; remove name, "
            "or name the folder of that configuration"
        )


def _of_split(path: str, splits: dict[str, list[Path]], split: str | None) -> list[Path]:
    named = [known for known in splits if known != UNNAMED]
    if split is None:
        if not named or len(splits) == 1:
            return next(iter(splits.values()))
        if named == ["train"]:
            return sorted([*splits["train"], *splits[UNNAMED]])
        listed = ", ".join(named)
        others = " and files of none" if UNNAMED in splits else ""
        first = "train" if "train" in named else named[0]
        raise DataError(
            f"{path}: holds files of the splits {listed}{others}; name the files of one (a pattern "
            f"means what it matches), or set split where the recipe names it: "
            f"{{path: {path}, split: {first}}}"
        )
    wanted = [known for known in named if known == split] or [
        known for known in named if _canonical(known) == _canonical(split)
    ]
    if not wanted and not named and _canonical(split) == "train":
        return splits[UNNAMED]
    if not wanted:
        listed = ", ".join(named) or "no split by their names"
        raise DataError(
            f"{path}: has no split {shown(split)}; its files are of {listed}: set one of these, or "
            "name the files"
        )
    if UNNAMED in splits and _canonical(split) == "train":
        raise DataError(
            f"{path}: {splits[UNNAMED][0].name} and perhaps others are of no split by their names, "
            f"beside those of {split}; name the files that are meant"
        )
    return splits[wanted[0]]


def _canonical(split: str) -> str:
    return _SPLIT_OF_WORD.get(split.lower(), split)


def _by_name(place: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(place)), []).append(file)
    return splits


def _split_of(file: Path) -> str:
    """Return the split that a file's name, or a folder on its way, names."""
    shard = _SHARD.match(file.name)
    if shard is not None and _words(shard[1]) & _SPLIT_OF_WORD.keys():
        return _SPLIT_OF_WORD.get(shard[1], shard[1])
    for part in (file.name, *reversed(file.parts[:-1])):
        found = {_SPLIT_OF_WORD[word] for word in _words(part) if word in _SPLIT_OF_WORD}
        if len(found) == 1:
            return found.pop()
    return UNNAMED


def _words(name: str) -> set[str]:
    return set(re.split(r"[-._ 0-9]+", name.lower()))


def _saved_splits(place: Path, path: str) -> dict[str, list[Path]] | None:
    """Return the files of what ``save_to_disk`` wrote, None for another folder."""
    if (place / "dataset_dict.json").is_file():
        listed = _read(place / "dataset_dict.json").get("splits")
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise DataError(f"{path}: dataset_dict.json lists no splits; save the dataset again")
        return {split: _saved_files(_part(place, split), path) for split in listed}
    if (place / "state.json").is_file() and (place / "dataset_info.json").is_file():
        return {UNNAMED: _saved_files(place, path)}
    return None


def _saved_files(folder: Path, path: str) -> list[Path]:
    state = _read(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(
            f"{path}: was saved with a selection beside its rows, by an old version of datasets; "
            "load it with datasets and write it with to_parquet"
        )
    listed = state.get("_data_files")
    names = [entry.get("filename") for entry in listed or [] if isinstance(entry, dict)]
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: state.json lists no data files; save the dataset again")
    return [_part(folder, str(name)) for name in names]


def _part(folder: Path, name: str) -> Path:
    part = folder / name
    if Path(name).name != name or not part.exists():
        raise DataError(f"{folder}: {shown(name)} is listed and not there; save the dataset again")
    return part


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except FileNotFoundError:
        raise DataError(f"{file}: is missing; save the dataset again") from None
    except CheckpointError as error:
        raise DataError(str(error)) from None


def _configurations(place: Path, path: str) -> dict[str, dict[str, Any]]:
    """Return the configurations that the front matter of the folder's README.md names."""
    readme = place / "README.md"
    if not readme.is_file():
        return {}
    try:
        with readme.open(encoding="utf-8", errors="replace") as file:
            text = file.read(LONGEST_CARD)
    except OSError as error:
        raise DataError(f"{readme}: cannot be read ({error.strerror})") from None
    front = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---", text, flags=re.DOTALL)
    if front is None:
        return {}
    import yaml

    try:
        # Aliases could stand for more than any memory holds; no card has them.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(front[1])):
            raise ValueError
        told = yaml.safe_load(front[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        raise DataError(
            f"{readme}: the front matter is not plain YAML, so which files are of which split is "
            "not known; mend it, or name the files"
        ) from None
    listed = told.get("configs") if isinstance(told, dict) else None
    configs: dict[str, dict[str, Any]] = {}
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and ("data_files" in entry or "data_dir" in entry):
            configs[str(entry.get("config_name", "default"))] = entry
    return configs


def _of_configuration(
    place: Path,
    path: str,
    files: Sequence[Path],
    configs: dict[str, dict[str, Any]],
    name: str | None,
) -> dict[str, list[Path]]:
    if name is None:
        chosen = [one for one, entry in configs.items() if entry.get("default") is True]
        chosen = chosen or [one for one in configs if one == "default"]
        chosen = chosen or (list(configs) if len(configs) == 1 else [])
        if not chosen:
            raise DataError(
                f"{path}: its README.md names the configurations {', '.join(configs)}; set name "
                "on this source to one of them"
            )
        name = chosen[0]
    if name not in configs:
        raise DataError(
            f"{path}: its README.md names the configurations {', '.join(configs)}, not "
            f"{shown(name)}; set name to one of them"
        )
    entry = configs[name]
    base = str(entry.get("data_dir") or "").strip("/")
    if "data_files" not in entry:
        within = [file for file in files if file.is_relative_to(place / base)]
        return _by_name(place / base, within) if within else _none(path, name, base)
    splits: dict[str, list[Path]] = {}
    for split, pattern in _patterns(entry["data_files"]):
        pattern = f"{base}/{pattern}" if base else pattern
        matched = [file for file in files if _matches(file.relative_to(place), pattern)]
        if not matched:
            _none(path, name, pattern)
        splits.setdefault(split, []).extend(matched)
    return splits or _none(path, name, "nothing")


def _none(path: str, name: str, pattern: str) -> Any:
    raise DataError(
        f"{path}: its README.md gives the configuration {shown(name)} the files {shown(pattern)}, "
        "and none is here; download them, or name the files"
    )


def _patterns(told: Any) -> Iterable[tuple[str, str]]:
    """Yield split and pattern of a card's ``data_files``; files of no split are for training."""
    for entry in told if isinstance(told, list) else [told]:
        if isinstance(entry, dict) and "path" in entry:
            split, paths = str(entry.get("split", "train")), entry["path"]
            for pattern in paths if isinstance(paths, list) else [paths]:
                yield split, str(pattern)
        elif isinstance(entry, dict):
            for split, paths in entry.items():
                for pattern in paths if isinstance(paths, list) else [paths]:
                    yield str(split), str(pattern)
        else:
            yield "train", str(entry)


def _matches(file: Path, pattern: str) -> bool:
    """Match a path inside the folder part by part; ``**`` stands for any number of parts."""

    def match(parts: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
        if not wanted:
            return not parts
        if wanted[0] == "**":
            return any(match(parts[skip:], wanted[1:]) for skip in range(len(parts) + 1))
        return bool(parts) and fnmatchcase(parts[0], wanted[0]) and match(parts[1:], wanted[1:])

    return match(file.parts, Path(pattern).parts)
