"""The fingerprint of a base's weights: every byte of every tensor, hashed once and remembered.

A base that was replaced in the middle of a run has the same names and shapes, and may have the same
first bytes. So all bytes are hashed, tensor by tensor, which makes the result the same however the
tensors are divided over files. That reads 12.8 GiB of 20b and 61 GiB of 120b, at the speed of the
disk or about 1 GB/s a core; so the digests of a file are kept in the cache, under its path, and
hold as long as its size, its times and its inode do. The time of the last change of the inode is
among them, which no copying tool can set back.

Hashing while the model is loaded was the alternative: it reads everything once, and tells a
continuation that its base is another one when it holds 60 GiB of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.positioned import read_at
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.harmony.dataset.cache import cache_folder
from gptoss_tune.weights.layouts.experts import StackedExperts
from gptoss_tune.weights.safetensors_file import SafetensorsFile

Source = SafetensorsFile | StackedExperts

_PIECE = 4 << 20
_MOST_THREADS = 8
_YOUNG_NS = 1_000_000_000
"""A file that changed so lately may change again without another time of its last change."""


def content_hash(tensors: Sequence[tuple[str, Source]]) -> str:
    """Return the sha256 over name, dtype, shape and bytes of all tensors.

    Args:
        tensors: Each tensor's name and the file that holds it, in the order of the model.

    Raises:
        CheckpointError: A file ends before its tensors do.
    """
    digests = {file.path: _digests(file) for file in _files(tensors)}
    digest = hashlib.sha256()
    for name, file in tensors:
        spec = file.entries[name].spec
        own = digests[file.path][name]
        digest.update(f"{name} {spec.dtype} {spec.shape} {own}\n".encode())
    return digest.hexdigest()


def unhashed_bytes(tensors: Sequence[tuple[str, Source]]) -> int:
    """Return how many bytes ``content_hash`` would have to read."""
    new = [
        file
        for file in _files(tensors)
        if isinstance(file, StackedExperts) or _remembered(file, _state(file)) is None
    ]
    return sum(entry.spec.nbytes for file in new for entry in file.entries.values())


def _files(tensors: Sequence[tuple[str, Source]]) -> list[Source]:
    return list({file.path: file for _, file in tensors}.values())


def _digests(file: Source) -> dict[str, str]:
    """Return the sha256 of each tensor's bytes by its name; stacks are made for it each time."""
    if isinstance(file, StackedExperts):
        return {name: _stack_hash(file, name) for name in file.entries}
    before = _state(file)
    found = _remembered(file, before)
    if found is not None:
        return found
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        hashed = threads.map(lambda name: _tensor_hash(file, name), file.entries)
        found = dict(zip(file.entries, hashed, strict=True))
    changed = max(before["mtime_ns"], before["ctime_ns"])
    if _state(file) == before and time.time_ns() - changed > _YOUNG_NS:
        _remember(file, {**before, "tensors": found})
    return found


def _stack_hash(stacks: StackedExperts, name: str) -> str:
    digest = hashlib.sha256()
    for piece in stacks.pieces(name):
        digest.update(piece)
    return digest.hexdigest()


def _tensor_hash(file: SafetensorsFile, name: str) -> str:
    entry, digest = file.entries[name], hashlib.sha256()
    at, end = entry.offset, entry.offset + entry.spec.nbytes
    piece = memoryview(bytearray(min(_PIECE, entry.spec.nbytes)))
    while at < end:
        count = read_at(file.descriptor, piece[: end - at], at)
        if not count:
            raise CheckpointError(
                f"{file.path}: ends at byte {at}, '{name}' was expected to reach {end}; the file "
                "was cut while it was read, copy it again"
            )
        digest.update(piece[:count])
        at += count
    return digest.hexdigest()


def _state(file: SafetensorsFile) -> dict[str, Any]:
    """Return what a file cannot keep when its content changes."""
    about = os.fstat(file.descriptor)
    return {
        "path": os.path.realpath(file.path),
        "device": about.st_dev,
        "inode": about.st_ino,
        "size": about.st_size,
        "mtime_ns": about.st_mtime_ns,
        "ctime_ns": about.st_ctime_ns,
    }


def _place(file: SafetensorsFile) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(file.path))).hexdigest()[:32]
    return cache_folder().parent / "bases" / f"{name}.json"


def _remembered(file: SafetensorsFile, state: dict[str, Any]) -> dict[str, str] | None:
    """Return the digests of an earlier reading of the same file; ``None``: it has to be read."""
    try:
        kept = read_object(_place(file))
    except (OSError, CheckpointError):
        return None
    tensors = kept.pop("tensors", None)
    if kept != state or not isinstance(tensors, dict) or tensors.keys() != file.entries.keys():
        return None
    return tensors if all(isinstance(digest, str) for digest in tensors.values()) else None


def _remember(file: SafetensorsFile, facts: dict[str, Any]) -> None:
    place = _place(file)
    # Without room for a cache the file is read again the next time, and nothing else is lost.
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=place.parent, delete=False
        ) as part:
            part.write(json.dumps(facts) + "\n")
        os.replace(part.name, place)
