"""Sources of a recipe -> rows: files, folders, globs, datasets on the Hub.

Rows come one at a time, so that a source may be larger than memory. Each source has a fingerprint
of its content, the key under which its rendering is kept: of the bytes of local files, of the
revision for a dataset on the Hub. File times were the alternative; a copied file would be rendered
again, and one written twice within a second would not.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gptoss_tune.errors import DataError, HubError, RecipeError
from gptoss_tune.harmony.sources.files import (
    READERS,
    Located,
    format_suffix,
    read_file,
    without_nulls,
)
from gptoss_tune.recipe.value_types import is_hub_name

if TYPE_CHECKING:
    from gptoss_tune.recipe import DataSection, DataSource

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class OpenedSource:
    """A source that is there.

    Attributes:
        label: What messages call it.
        fingerprint: Changes when its content or its reading does.
        size: Bytes on disk, to choose the number of processes; 0 where unknown.
        rows: Starts reading from the first row.
    """

    label: str
    fingerprint: str
    size: int
    rows: Callable[[], Iterator[Located]]


def open_source(source: DataSource) -> OpenedSource:
    """Return a recipe's source, found and fingerprinted.

    Raises:
        DataError: No such file, an empty folder, an unknown format.
        HubError: The Hub does not have the dataset, or cannot be asked.
        RecipeError: The column templates cannot be used.
    """
    if source.columns is not None:
        from gptoss_tune.harmony.sources.columns import ColumnTemplates

        ColumnTemplates(dict(source.columns.items()))  # refused before anything is read
    files = find_files(source.path)
    if files is not None:
        return _limited(source, _open_files(source.path, files))
    return _limited(source, _open_hub(source))


def find_files(path: str) -> list[tuple[Path, str]] | None:
    """Return the files a local path means, with their names; None for a dataset on the Hub.

    Raises:
        DataError: The path means no file.
    """
    place = Path(path)
    if place.is_file():
        return [(place, path)]
    if place.is_dir():
        files = sorted(
            file
            for file in place.rglob("*")
            if file.is_file()
            and format_suffix(file) in READERS
            and not any(part.startswith(".") for part in file.relative_to(place).parts)
        )
        if not files:
            raise DataError(f"{path}: the folder holds no {', '.join(READERS)} file; add one")
        return [(file, str(file)) for file in files]
    if glob.has_magic(path):
        found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
        if not found:
            raise DataError(f"{path}: no file matches (looked in {Path.cwd()})")
        return [(Path(name), name) for name in found]
    if is_hub_name(path) and format_suffix(path) not in READERS:
        return None
    folder = place.parent
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(place.name, names, n=1)
    hint = f"; did you mean {str(folder / near[0])!r}?" if near else ""
    raise DataError(
        f"{path}: no such file{hint} (looked in {Path.cwd()}; paths are relative to the current "
        "directory)"
    )


def listed_files(data: DataSection) -> Iterator[tuple[str, DataSource, Path | None]]:
    """Yield split, source and file of all that a recipe's data names, in its order.

    A dataset of the Hub has no file.

    Raises:
        DataError: A path means no file.
    """
    for split, sources in (("train", data.train), ("eval", data.eval or [])):
        for source in sources:
            found = find_files(source.path)
            for file in (None,) if found is None else (file for file, _ in found):
                yield split, source, file


def _limited(source: DataSource, opened: OpenedSource) -> OpenedSource:
    columns: Any = source.columns
    limit = source.limit

    def rows() -> Iterator[Located]:
        located = itertools.islice(opened.rows(), limit)
        if columns is None:
            return located
        from gptoss_tune.harmony.sources.columns import ColumnTemplates

        return ColumnTemplates(columns).rows(located)

    settings = json.dumps([limit, columns], sort_keys=True)
    digest = hashlib.sha256(f"{opened.fingerprint} {settings}".encode()).hexdigest()
    return OpenedSource(opened.label, digest, opened.size, rows)


def _open_files(path: str, files: list[tuple[Path, str]]) -> OpenedSource:
    digest = hashlib.sha256()
    size = 0
    for file, name in files:
        digest.update(f"{name}\n".encode(errors="surrogateescape"))
        try:
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
            size += file.stat().st_size
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror}); check the file") from None

    def rows() -> Iterator[Located]:
        return itertools.chain.from_iterable(read_file(file, name) for file, name in files)

    return OpenedSource(path, digest.hexdigest(), size, rows)


def _open_hub(source: DataSource) -> OpenedSource:
    if source.streaming and not _COMMIT.fullmatch(source.revision or ""):
        raise RecipeError(
            f"{source.path}: streaming reads the rows anew in every process, so the revision must "
            "be a whole commit (40 hex digits); set it, or remove streaming"
        )
    if source.path in _loaders():
        raise DataError(
            f"{source.path}: is a loader of the library datasets and no dataset; it would read "
            "whatever lies in the current directory: name the files, or owner/name on the Hub"
        )
    dataset = _load_from_hub(source)
    if source.streaming:
        told = json.dumps([source.path, source.name, source.split, source.revision])
        fingerprint = hashlib.sha256(told.encode()).hexdigest()
    else:
        fingerprint = dataset._fingerprint
    label = source.path if source.name is None else f"{source.path}/{source.name}"

    def rows() -> Iterator[Located]:
        for number, row in enumerate(dataset, start=1):
            yield f"{label}:{number}", without_nulls(row)

    return OpenedSource(label, fingerprint, 0, rows)


def _loaders() -> frozenset[str]:
    """Return the names that ``datasets`` takes for code of its own instead of a dataset."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return frozenset(_PACKAGED_DATASETS_MODULES)


def _load_from_hub(source: DataSource) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return datasets.load_dataset(
            source.path,
            source.name,
            split=source.split or "train",
            revision=source.revision,
            streaming=source.streaming,
        )
    except (DatasetsError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise HubError(
            f"{source.path}: no such file here, and the Hub gives no dataset of that name "
            f"({reason}); check the name, split and revision, log in with `hf auth login` where it "
            "is private or gated, or download it and name the files"
        ) from None
