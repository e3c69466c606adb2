"""Hashes of a finished folder: written once into ``manifest.json``, compared when it is used.

The manifest of an adapter or a merged model has the form of a checkpoint's
(``run.checkpoints``): ``{"files": {name: {"sha256", "bytes"}}, ..., "sha256": of the rest}``. A bit
that flips on a disk or on the way leaves a file that opens, has every tensor and no NaN. Whatever
opens an adapter compares its hashes; those of a merged model, many times as large, are compared by
its verification alone (``verify``, and before it is pushed).

Only the files that a manifest names are compared: a README beside them is nobody's harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss_tune.display import one_line
from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.atomic import to_json, write_text
from gptoss_tune.files.digest import digest_of, sha256_of
from gptoss_tune.files.paths import inside
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.run.checkpoints import MANIFEST

_LARGEST = 16 << 20


def hash_of(path: Path) -> dict[str, Any]:
    """Return a file's line of a manifest: ``{"sha256": hex, "bytes": int}``."""
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def write_manifest(folder: Path, files: Mapping[str, dict[str, Any]]) -> None:
    """Write the hashes of ``files``, by name in ``folder``, to its manifest.

    Raises:
        MachineError: The disk is full or cannot be written.
    """
    content = {"files": dict(files)}
    write_text(folder / MANIFEST, to_json({**content, "sha256": digest_of(content)}))


def damaged_files(folder: Path, among: tuple[str, ...] = ()) -> list[str] | None:
    """Return what is wrong with the files of a manifest; None where there is no manifest of ours.

    Args:
        folder: A finished adapter or merged model.
        among: Look at these alone; nothing: at every file that the manifest names.
    """
    try:
        files = _recorded(folder)
    except CheckpointError as error:
        return [str(error)]
    if files is None:
        return None
    faults = []
    for name, entry in files.items():
        if among and name not in among:
            continue
        try:
            if hash_of(inside(folder, name, f"{MANIFEST} names")) != entry:
                faults.append(
                    f"{one_line(name)} is not the file that was written: its sha256 or size is not "
                    f"that in {MANIFEST}"
                )
        except CheckpointError as error:
            faults.append(str(error))
    return faults


def refuse_damaged(folder: Path, among: tuple[str, ...]) -> None:
    """Raise where a file of ``folder`` is not the one whose hash its manifest has.

    Raises:
        CheckpointError: Names the file.
    """
    if faults := damaged_files(folder, among):
        raise CheckpointError(
            f"{folder}: {faults[0]}; copy it again from where it was written or take an earlier "
            f"checkpoint, or remove {MANIFEST} if you changed the file yourself"
        )


def _recorded(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return the files of the manifest; None where there is none, or one of another program.

    Raises:
        CheckpointError: It is no JSON, or its own hash is not what it says.
    """
    if not (folder / MANIFEST).is_file():
        return None
    content = read_object(inside(folder, MANIFEST, f"{folder}: has"), largest=_LARGEST)
    files, stated = content.get("files"), content.pop("sha256", None)
    if not isinstance(files, dict) or not isinstance(stated, str):
        return None
    if stated != digest_of(content):
        raise CheckpointError(f"{folder}: {MANIFEST} is damaged: its sha256 is not its own")
    return files
