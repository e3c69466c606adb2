"""Folders that are built once and read often, each under the hash of what it was built from.

A folder is written beside its place and renamed into it when it is whole, so a reader finds all of
it or none; a lock lets one process build while the others wait, and the system frees the lock of a
process that died. The cache may be deleted at any time. The fingerprints of ``datasets`` were the
alternative: they hash the code that renders by pickling it, and miss when a module is edited.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptoss_tune.errors import MachineError


def cache_folder() -> Path:
    """Return where rendered data sets are kept: ``$XDG_CACHE_HOME/gptoss-tune/data``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gptoss-tune" / "data"


def cache_key(parts: Any) -> str:
    """Return the name of a folder built from JSON values ``parts``."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def built_once(key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of ``key``; ``build`` fills an empty one when it is not there yet.

    Raises:
        MachineError: The cache cannot be written.
    """
    root = cache_folder()
    place = root / key
    if place.is_dir():
        return place
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not place.is_dir():
                _build(root, place, build)
    except OSError as error:
        raise MachineError(
            f"{root}: the rendered data cannot be written ({error.strerror or error}); free some "
            "space, or point XDG_CACHE_HOME to another disk"
        ) from error
    return place


def _build(root: Path, place: Path, build: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="building-", dir=root) as building:
        folder = Path(building) / place.name
        folder.mkdir()
        build(folder)
        os.replace(folder, place)
