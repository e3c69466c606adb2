"""The suites that ship with this package: their files lie in ``data/suites/``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tune.benchmark.suites.packages import PREFIX, package_file
from gptoss_tune.benchmark.suites.read import read_suite_file
from gptoss_tune.benchmark.suites.schema import SuiteFile
from gptoss_tune.errors import DataError
from gptoss_tune.shipped import seen_from_here, shipped


@dataclass(frozen=True)
class ListedSuite:
    """A shipped suite, as a list shows it.

    Attributes:
        name: To call it by.
        description: What it measures.
        licence: Of its tasks.
        source: Who wrote them.
        tasks: How many there are; ``None`` where a package has them that is not installed.
        missing: What to do to have its tasks; ``None``: they are there.
    """

    name: str
    description: str
    licence: str
    source: str
    tasks: int | None
    missing: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return dict(vars(self))


def shipped_suites() -> list[ListedSuite]:
    """Return the shipped suites by name."""
    return [_listed(path) for path in _files().values()]


def suite_path(name_or_path: str) -> str | None:
    """Return the file that a suite's name or path means; ``None`` where there is none.

    A file is always itself, also where a shipped suite has its name.
    """
    path = Path(name_or_path)
    if path.is_file():
        return name_or_path
    found = _files().get(name_or_path)
    return None if found is None else seen_from_here(found)


def nearest(name: str) -> list[str]:
    """Return shipped names that ``name`` may be meant for."""
    return difflib.get_close_matches(name, _files(), n=2, cutoff=0.6)


def _files() -> dict[str, Path]:
    """Return the shipped suite files by name."""
    return {path.stem: path for path in sorted((shipped("data") / "suites").glob("*.yaml"))}


def _listed(path: Path) -> ListedSuite:
    file = read_suite_file(str(path))
    missing = None
    count: int | None = None
    try:
        count = _count(file, path.parent)
    except DataError as error:
        missing = str(error)
    return ListedSuite(file.name, file.description, file.licence, file.source, count, missing)


def _count(file: SuiteFile, folder: Path) -> int:
    """Return how many tasks a suite has.

    Raises:
        DataError: A package that ships them is not installed.
    """
    from gptoss_tune.harmony.sources.files import read_file

    if file.needles is not None:
        return sum(len(group.lengths) * len(group.depths) for group in file.needles)
    count = 0
    for source in file.tasks or ():
        packaged = source.path.startswith(PREFIX)
        path = package_file(source.path) if packaged else folder / source.path
        rows = sum(1 for _ in read_file(path, source.path))
        count += rows if source.limit is None else min(rows, source.limit)
    return count if file.limit is None else min(count, file.limit)
