"""Names and links that must not leave their folder.

A checkpoint, an adapter or a run that someone else packed can name ``../../.ssh/id_rsa`` as a
shard, or hold a link ``tokenizer_config.json -> /etc/passwd``. Reading it leaks the file into a
merged folder and from there into an upload; writing through it changes a file that no run owns.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from gptoss_tune.display import one_line
from gptoss_tune.errors import CheckpointError


def inside(folder: Path, name: str, where: str) -> Path:
    """Return the existing file ``name`` of ``folder``.

    Args:
        folder: A checkpoint's, adapter's or run's folder.
        name: As an index, a manifest or a listing gives it, with ``/`` between folders.
        where: What names it, for the message: ``".../index.json: names"``.

    Raises:
        CheckpointError: The name or a link leaves the folder, or there is no such file.
    """
    pure, shown = PurePosixPath(name), one_line(name)
    if not name or not name.isprintable():
        raise CheckpointError(f"{where} '{shown}', which is no name of a file; refused")
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in pure.parts[0]:
        raise CheckpointError(f"{where} '{shown}', which leaves the folder; refused")
    file = folder / name
    if os.path.islink(os.path.realpath(file)):
        raise CheckpointError(
            f"{where} '{shown}', a link that leads round to itself; copy the file into the folder"
        )
    if not stays_inside(folder, file):
        raise CheckpointError(
            f"{where} '{shown}', a link to {one_line(os.path.realpath(file))} outside the folder; "
            "refused, copy the file into the folder"
        )
    if not file.exists():
        there = (
            f"a link to {one_line(os.path.realpath(file))}, which" if file.is_symlink() else "which"
        )
        raise CheckpointError(f"{where} '{shown}', {there} is missing; copy or download it again")
    return file


def stays_inside(folder: Path, file: Path) -> bool:
    """Return whether ``file``, its links followed, lies in ``folder``.

    The folder is what its user named, and may be a link. The Hub's cache is made of links from
    snapshots/REVISION/ to blobs/ of the same repository: there, the repository counts as the
    folder, and ``blobs`` itself may be a link to another disk.
    """
    root = Path(os.path.realpath(folder))
    real = Path(os.path.realpath(file))
    if real.is_symlink():
        return False
    if root.parent.name != "snapshots":
        return real.is_relative_to(root)
    repository = root.parents[1]
    return real.is_relative_to(repository) or _is_blob(repository, real)


def _is_blob(repository: Path, real: Path) -> bool:
    """Return whether ``real`` lies in the ``blobs`` of a cached repository, which are a link.

    A stranger could pack such a link to any folder. So that folder must hold blobs and nothing
    else: each of its files is linked from a snapshot, and no snapshot's link leads nowhere, as the
    links of one who guessed at names would.
    """
    blobs = repository / "blobs"
    if not blobs.is_symlink() or real.parent != Path(os.path.realpath(blobs)):
        return False
    linked = set()
    for parent, _, files in os.walk(repository / "snapshots"):
        for name in files:
            target = Path(os.path.realpath(os.path.join(parent, name)))
            if not target.exists():
                return False
            linked.add(target)
    present = (real.parent / entry for entry in os.listdir(real.parent))
    return all(path in linked or path.suffix in _UNFINISHED for path in present)


_UNFINISHED = (".incomplete", ".lock")
"""Files beside blobs, of a download that is under way or was stopped."""


def refuse_links(folder: Path, passed_over: Sequence[str] = ()) -> None:
    """Refuse a folder that is about to be written into and holds links that leave it.

    Args:
        folder: A run's folder.
        passed_over: Patterns, relative to the folder, of links that may lead anywhere.

    Raises:
        CheckpointError: Names the first such link.
    """
    real = os.path.realpath(folder)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            entry = os.path.join(parent, name)
            if not os.path.islink(entry):
                continue
            if any(Path(entry).relative_to(folder).match(pattern) for pattern in passed_over):
                continue
            target = os.path.realpath(entry)
            if not Path(target).is_relative_to(real) or os.path.islink(target):
                raise CheckpointError(
                    f"{folder}: holds '{one_line(os.path.relpath(entry, folder))}', a link to "
                    f"{one_line(target)} outside the folder; nothing is written through it, remove "
                    "the link"
                )
