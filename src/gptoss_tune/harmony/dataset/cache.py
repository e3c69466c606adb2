"""Folders that are built once and read often, each under the hash of what it was built from.

A folder is written beside its place, synced and renamed into it when it is whole, so a reader finds
all of it or none; a lock lets one process build while the others wait, and the system frees the
lock of a process that died: what it left is removed by the next one that builds. A manifest holds
the hash of every file; they are compared once in each process that reads a folder, and a folder
that differs is built again. The cache may be deleted at any time. The fingerprints of ``datasets``
were the alternative: they hash the code that renders by pickling it, and miss when a module is
edited.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from gptoss_tune.errors import MachineError, say_once
from gptoss_tune.files.atomic import sync
from gptoss_tune.files.digest import digest_of, sha256_of
from gptoss_tune.files.locking import FileLock, LockHeld

MANIFEST: Final = "manifest.json"
WAIT_SAID_AFTER: Final = 10.0
"""Seconds; the processes of one run start within them, and only the first builds."""
_PRIVATE_FOLDER: Final = 0o700
_PRIVATE_FILE: Final = 0o600
Identity = tuple[tuple[str, int, int, int], ...]
"""Name, bytes, time and inode of each file of a folder."""


def cache_folder() -> Path:
    """Return where rendered data sets are kept: ``$XDG_CACHE_HOME/gptoss-tune/data``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gptoss-tune" / "data"


def cache_key(parts: Any) -> str:
    """Return the name of a folder built from JSON values ``parts``."""
    return digest_of(parts)[:32]


def built_once(
    key: str,
    build: Callable[[Path], None],
    *,
    private: bool = False,
    what: str = "the rendered data",
) -> Path:
    """Return the folder of ``key``; ``build`` fills an empty one when it is not there yet.

    Args:
        key: From ``cache_key``.
        build: Writes the files of the folder.
        private: Whether what it is built from is kept from other users of the machine; so is the
            folder then, whoever built it.
        what: Of what the folder is, a plural, for messages.

    Raises:
        MachineError: The cache cannot be written.
    """
    root = cache_folder()
    place = root / key
    try:
        if not _is_whole(place):
            root.mkdir(parents=True, exist_ok=True)
            with _locked(root / f"{key}.lock") as alone:
                if not _is_whole(place):
                    _remove_damaged(place)
                    if alone:
                        _remove_abandoned(root, key)
                    _build(root, place, build, private=private)
        if private and place.stat().st_mode & 0o077:
            place.chmod(_PRIVATE_FOLDER)
    except OSError as error:
        raise MachineError(
            f"{root}: {what} cannot be written ({error.strerror or error}); free some "
            "space, or point XDG_CACHE_HOME to another disk"
        ) from error
    return place


def state_of(key: str) -> Literal["whole", "damaged", "missing"]:
    """Return whether the folder of ``key`` is there as it was written; nothing is built."""
    place = cache_folder() / key
    if not place.exists():
        return "missing"
    return "whole" if _is_whole(place) else "damaged"


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[bool]:
    """Hold a lock, and say so when another process has it for long; yield whether it is held.

    A disk without locks lets several build the same folder: one of them gives it its name, and the
    others find it whole.
    """
    with FileLock(file) as lock:
        said_at = time.monotonic() + WAIT_SAID_AFTER
        while True:
            try:
                alone = lock.take() is None
                break
            except LockHeld:
                time.sleep(0.05)
            if time.monotonic() >= said_at:
                said_at = float("inf")
                say_once("another process renders the same data; this one waits for it")
        yield alone


def _build(root: Path, place: Path, build: Callable[[Path], None], *, private: bool) -> None:
    # The folder of mkdtemp keeps others out until the files have their mode.
    prefix = f"building-{place.name}-{_host()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as building:
        folder = Path(building) / place.name
        folder.mkdir()
        build(folder)
        hashes = {file.name: sha256_of(file) for file in sorted(folder.iterdir())}
        (folder / MANIFEST).write_text(json.dumps(hashes), encoding="utf-8")
        for file in folder.iterdir():
            if private:
                file.chmod(_PRIVATE_FILE)
            sync(file)
        if private:
            folder.chmod(_PRIVATE_FOLDER)
        sync(folder)
        try:
            os.replace(folder, place)
        except OSError:
            if not _is_whole(place):  # else another machine, on a disk whose locks are local
                raise
        sync(root)


def _is_whole(place: Path) -> bool:
    """Return whether a folder is there with the files that were written into it."""
    try:
        found = [(file.name, file.stat()) for file in sorted(place.iterdir())]
    except FileNotFoundError:
        return False
    identity = tuple((name, on.st_size, on.st_mtime_ns, on.st_ino) for name, on in found)
    return _agrees(str(place), identity)


@lru_cache(maxsize=1024)
def _agrees(place: str, identity: Identity) -> bool:
    """Compare a folder with its manifest, once for each ``identity`` of its files."""
    folder = Path(place)
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(hashes, dict) or not hashes:
            return False
        if not hashes.keys() <= {name for name, *_ in identity}:
            return False
        return all(sha256_of(folder / name) == sha256 for name, sha256 in hashes.items())
    except (OSError, ValueError, RecursionError):
        return False


def _remove_damaged(place: Path) -> None:
    if not place.exists():
        return
    say_once(f"{place}: the rendered data are damaged; they are rendered again")
    shutil.rmtree(place)


def _remove_abandoned(root: Path, key: str) -> None:
    """Remove what builders of this machine left that were killed: nobody holds their lock."""
    for left in root.glob("building-*"):
        named = re.fullmatch(rf"building-([0-9a-f]{{32}})-{re.escape(_host())}-\w+", left.name)
        if named is None:
            continue
        if named[1] == key:  # whose lock is held here
            shutil.rmtree(left, ignore_errors=True)
            continue
        with (
            contextlib.suppress(OSError, LockHeld, MachineError),
            FileLock(root / f"{named[1]}.lock") as lock,
        ):
            if lock.take() is None:
                shutil.rmtree(left, ignore_errors=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "", platform.node()) or "host"
