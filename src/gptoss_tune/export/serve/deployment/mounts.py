"""Folders of this machine in a container, as compose mounts them.

The long form is written: the short one parts a path at its colons, and makes a folder, as root,
where the source is missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError

_BLOBS = "blobs"


def mounted(source: str, target: str) -> dict[str, Any]:
    """Return a file or folder of this machine, read at ``target``; ``$`` stands for itself."""
    return mounted_as_told(source.replace("$", "$$"), target)


def mounted_as_told(source: str, target: str, *, read_only: bool = True) -> dict[str, Any]:
    """Return a mount whose source may hold variables, which compose fills in."""
    return {
        "type": "bind",
        "source": source,
        "target": target,
        "read_only": read_only,
        "bind": {"create_host_path": False},
    }


def model_mounts(folder: str, target: str) -> list[dict[str, Any]]:
    """Return the mounts of a model's folder, whose files may be links into the Hub's cache.

    A snapshot of the cache holds links to ``../../blobs``. In a container they point to a folder
    beside the one that holds ``target``, and there the blobs are mounted too.

    Args:
        folder: On this machine; one that is not there, such as a name on the Hub, has no links.
        target: In the container, two folders deep.

    Raises:
        CheckpointError: A file is a link that leaves the folder and leads to no blob.
    """
    real = Path(folder).resolve()
    blobs = real.parent.parent / _BLOBS
    place = Path(target).parent.parent / _BLOBS
    known = [(real, Path(target))]
    if real.parent.name == "snapshots" and blobs.is_dir():
        known.append((blobs, place))
    found = {link: _place_of(link, real, target, known) for link in _links(real)}
    lost = [link for link, where in found.items() if where is None]
    if lost:
        raise CheckpointError(
            f"{lost[0]}: is a link to {lost[0].readlink()}, which a container that is given "
            f"{folder} does not find ({len(lost)} such files); copy the folder with what its links "
            "mean, cp -rL FOLDER COPY, and serve the copy"
        )
    beside = [mounted(str(blobs), str(place))] if place in found.values() else []
    return [mounted(folder, target), *beside]


def _links(folder: Path) -> Iterator[Path]:
    """Yield the links below a folder."""
    for parent, folders, files in os.walk(folder):
        yield from (
            path for path in (Path(parent, n) for n in folders + files) if path.is_symlink()
        )


def _place_of(
    link: Path, real: Path, target: str, known: Sequence[tuple[Path, Path]]
) -> Path | None:
    """Return the mount that holds what ``link`` means here and in the container, if there is one.

    A link to a link is not followed: the Hub's cache has none.
    """
    here = Path(os.path.normpath(link.parent / link.readlink()))
    there = Path(os.path.normpath(Path(target, link.relative_to(real)).parent / link.readlink()))
    for source, place in known:
        if here.is_relative_to(source) and there == place / here.relative_to(source):
            return place if here.exists() and not here.is_symlink() else None
    return None
