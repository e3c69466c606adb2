"""Checkpoints that are complete or absent: staged, hashed, renamed.

A checkpoint is written into ``RUN/.staging``, its files are hashed into ``manifest.json`` and
synced to disk, and only then does the folder get its name; a crash at any point leaves either the
old state or the new one. ``resume=auto`` takes the newest checkpoint whose every file still matches
its manifest. The usual way, writing into ``checkpoint-N`` and resuming from the highest number,
resumes from torn files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from gptoss_tune.errors import CheckpointError

MANIFEST = "manifest.json"
STAGING = ".staging"
_NAME = re.compile(r"checkpoint-(\d+)")


def stage(run: Path) -> Path:
    """Return an empty staging folder inside ``run``; what an earlier crash left is removed."""
    staging = run / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def publish(staged: Path, final: Path) -> None:
    """Hash and sync the files of ``staged``, then give it the name ``final``, replacing nothing.

    Raises:
        CheckpointError: ``final`` exists already.
    """
    if final.exists():
        raise CheckpointError(f"{final} exists already and is not overwritten; move it away")
    files = {
        str(path.relative_to(staged)): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(staged.rglob("*"))
        if path.is_file()
    }
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")
    for name in (*files, MANIFEST):
        _sync(staged / name)
    _sync(staged)
    staged.rename(final)
    _sync(final.parent)


def verify(folder: Path) -> None:
    """Check every file of a published checkpoint against its manifest.

    Raises:
        CheckpointError: The manifest is missing or unreadable, or a file is missing or changed.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: no readable {MANIFEST} ({error})") from error
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
            raise CheckpointError(f"{folder}: {name} is damaged: its sha256 is not the manifest's")


def published(run: Path) -> list[Path]:
    """Return the checkpoints of ``run``, newest first, damaged ones included."""
    found = [
        (int(match[1]), path)
        for path in (run.iterdir() if run.is_dir() else ())
        if path.is_dir() and (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def newest_complete(run: Path) -> tuple[Path | None, list[str]]:
    """Return the newest undamaged checkpoint of ``run``, and why newer ones were passed over."""
    passed_over: list[str] = []
    for folder in published(run):
        try:
            verify(folder)
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        return folder, passed_over
    return None, passed_over


def prune(run: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints; each leaves its name before its files go."""
    for folder in published(run)[keep:]:
        doomed = folder.with_name(f".pruned-{folder.name}")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
