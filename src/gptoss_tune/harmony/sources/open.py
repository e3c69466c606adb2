"""Sources of a recipe -> rows: files, folders, globs, datasets on the Hub.

Rows come one at a time, so that a source may be larger than memory. Each source has a fingerprint
of its content, the key under which its rendering is kept: of the bytes of local files, of the
revision for a dataset on the Hub. File times were the alternative; a copied file would be rendered
again, and one written twice within a second would not. Whoever keeps what was read takes the
fingerprint again afterwards (``confirm``): a file that was edited in between gives neither.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gptoss_tune.errors import DataError, HubError, RecipeError
from gptoss_tune.files.digest import sha256_of
from gptoss_tune.harmony.sources.files import read_file, refuse_unreadable
from gptoss_tune.harmony.sources.folders import find_files
from gptoss_tune.harmony.sources.rows import Located
from gptoss_tune.harmony.sources.tables import features_plan, without_nulls
from gptoss_tune.recipe.data_schema import TASK_KEYS

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
        confirm: Raises DataError when the content is not what the fingerprint was taken of.
        private: Whether a file of it, or a folder on its way, keeps other users of the machine out.
    """

    label: str
    fingerprint: str
    size: int
    rows: Callable[[], Iterator[Located]]
    confirm: Callable[[], None]
    private: bool


def open_source(source: DataSource) -> OpenedSource:
    """Return a recipe's source, found and fingerprinted.

    Raises:
        DataError: No such file, an empty folder, an unknown format.
        HubError: The Hub does not have the dataset, or cannot be asked.
        RecipeError: The column templates cannot be used.
    """
    if source.columns is not None:
        from gptoss_tune.harmony.sources.columns import ColumnTemplates

        # Refused before anything is read.
        ColumnTemplates(dict(source.columns.items()), structured=TASK_KEYS)
    files = _files_of(source)
    if files is None:
        return _limited(source, _open_hub(source))
    for name in ("revision", "streaming"):
        if getattr(source, name):
            raise DataError(
                f"{source.path}: lies here, and what lies here has no {name}; remove {name}, or "
                "rename it here to read the Hub's dataset of that name"
            )
    return _limited(source, _open_files(source.path, files))


def _files_of(source: DataSource) -> list[tuple[Path, str]] | None:
    return find_files(source.path, name=source.name, split=source.split)


def listed_files(data: DataSection) -> Iterator[tuple[str, DataSource, Path | None]]:
    """Yield split, source and file of all that a recipe's data names, in its order.

    A dataset of the Hub has no file.

    Raises:
        DataError: A path means no file.
    """
    for split, sources in (("train", data.train), ("eval", data.eval or [])):
        for source in sources:
            found = _files_of(source)
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

        return ColumnTemplates(columns, structured=TASK_KEYS).rows(located)

    settings = json.dumps([limit, columns], sort_keys=True)
    digest = hashlib.sha256(f"{opened.fingerprint} {settings}".encode()).hexdigest()
    return replace(opened, fingerprint=digest, rows=rows)


def _open_files(path: str, files: list[tuple[Path, str]]) -> OpenedSource:
    for file, name in files:
        refuse_unreadable(file, name)
    fingerprint = _fingerprint(files)

    def rows() -> Iterator[Located]:
        return itertools.chain.from_iterable(read_file(file, name) for file, name in files)

    def confirm() -> None:
        if _fingerprint(files) != fingerprint:
            raise DataError(
                f"{path}: was changed while it was read, so nothing of it was kept; start again "
                "when nothing writes to it"
            )

    size = sum(file.stat().st_size for file, _ in files)
    private = any(_keeps_others_out(file) for file, _ in files)
    return OpenedSource(path, fingerprint, size, rows, confirm, private)


def _fingerprint(files: list[tuple[Path, str]]) -> str:
    digest = hashlib.sha256()
    for file, name in files:
        digest.update(f"{name}\n".encode(errors="surrogateescape"))
        try:
            digest.update(bytes.fromhex(sha256_of(file)))
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror}); check the file") from None
    return digest.hexdigest()


def _keeps_others_out(file: Path) -> bool:
    """Whether users other than the owner and its group cannot read a file."""
    real = Path(os.path.realpath(file))
    if not real.stat().st_mode & stat.S_IROTH:
        return True
    return any(not folder.stat().st_mode & stat.S_IXOTH for folder in real.parents)


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
    features = getattr(dataset, "features", None)
    plan = features_plan(features.to_dict(), decoded=True) if features else None
    if source.streaming:
        told = json.dumps([source.path, source.name, source.split, source.revision])
        fingerprint = hashlib.sha256(told.encode()).hexdigest()
    else:
        fingerprint = dataset._fingerprint
    label = source.path if source.name is None else f"{source.path}/{source.name}"

    def rows() -> Iterator[Located]:
        for number, row in enumerate(dataset, start=1):
            at = f"{label}:{number}"
            try:
                yield at, without_nulls(row, plan, at)
            except DataError as error:
                yield at, error

    return OpenedSource(label, fingerprint, 0, rows, lambda: None, private=False)


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
