"""Checkpoints that are complete or absent: staged, hashed, renamed.

A checkpoint is written into ``RUN/.staging``, its files are hashed into ``manifest.json`` and
synced to disk, and only then does the folder get its name; a crash at any point leaves either the
old state or the new one. ``resume=auto`` takes the newest checkpoint of this run whose every file
still matches its manifest. The usual way, writing into ``checkpoint-N`` and resuming from the
highest number, resumes from torn files.

A disk that fills up during a save gives one message, and the checkpoints before it stay. Tools that
write into the checkpoint's own folder leave the torn one as the newest, and the next resume takes
it; here it was only staged, and what is staged can go.

A folder that anybody may have written is trusted with nothing: it holds safetensors and JSON, the
files of its manifest and no other, and no link. A pickle is refused by its name, before a library
that would execute it can look for it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss_tune.display import one_line
from gptoss_tune.errors import CheckpointError, GptossTuneError, MachineError
from gptoss_tune.files.atomic import NO_NAMES, disk_errors, free_names, sync, write_text
from gptoss_tune.files.digest import digest_of, sha256_of
from gptoss_tune.files.strict_json import read_object
from gptoss_tune.run.folder import CHECKPOINT, RunFolder

MANIFEST = "manifest.json"
SET_ASIDE = "refused-"
"""Before the name of a checkpoint that was passed over, so that its number is free again."""
_PRUNED = ".pruned-"
_SUFFIXES = {".safetensors", ".json"}
_LARGEST_MANIFEST = 16 << 20


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
        files: ``{name: {"sha256": hex, "bytes": int}}``.
        facts: What ``publish`` was given: ``run_id``, ``step``, ``fingerprint``.
    """

    files: dict[str, dict[str, Any]]
    facts: dict[str, Any]


def stage(run: Path) -> Path:
    """Return an empty staging folder inside ``run``; what an earlier crash left is removed.

    Raises:
        CheckpointError: The run's folder is gone: a new one of its name would hold half of a run.
        MachineError: The disk is full or cannot be written.
    """
    staging = RunFolder(run).staging
    for left in (staging, *run.glob(f"{_PRUNED}*")):
        shutil.rmtree(left, ignore_errors=True)
    if not run.is_dir():
        raise CheckpointError(
            f"{run}: the run's folder is not there any more; it was renamed, moved or removed "
            "while the run wrote into it. Move it back, then the same command continues"
        )
    with disk_errors(staging):
        staging.mkdir()
    return staging


def publish(staged: Path, final: Path, **facts: Any) -> None:
    """Hash and sync the files of ``staged``, then give it the name ``final``, replacing nothing.

    Args:
        staged: A folder of safetensors and JSON files.
        final: Its name to be.
        facts: JSON values to keep in the manifest: the run's id, the step, the fingerprint.

    Raises:
        CheckpointError: ``final`` exists already, or ``staged`` holds what a reader would refuse.
        MachineError: The disk is full or cannot be written.
    """
    if os.path.lexists(final):
        raise CheckpointError(f"{final} exists already and is not overwritten; move it away")
    with disk_errors(final):
        files = {
            name: {"sha256": sha256_of(staged / name), "bytes": (staged / name).stat().st_size}
            for name in _file_names(staged)
        }
        content = {**facts, "files": files}
        text = json.dumps({**content, "sha256": digest_of(content)}, indent=1)
        write_text(staged / MANIFEST, text + "\n")
        for name in (*files, MANIFEST):
            sync(staged / name)
        for folder in (*(path for path in staged.rglob("*") if path.is_dir()), staged):
            sync(folder)
        staged.rename(final)
        sync(final.parent)


def sync_lines(run: Path) -> None:
    """Sync the files of metrics and layers: a checkpoint that survives a power loss has its lines.

    Raises:
        MachineError: The disk is full or cannot be written.
    """
    folder = RunFolder(run)
    with disk_errors(run):
        for path in (folder.metrics, folder.layers):
            if path.exists():
                sync(path)


def verify(folder: Path, run: str | None = None) -> Manifest:
    """Check every file of a published checkpoint against its manifest, and return the manifest.

    Args:
        folder: The checkpoint.
        run: Id of the run it must be of; ``None``: of any.

    Raises:
        CheckpointError: The manifest is missing or changed, a file is missing, changed, not in the
            manifest, a link or of another kind than safetensors and JSON, or the checkpoint is
            another run's or another step's.
    """
    manifest = _manifest(folder)
    owner, step = manifest.facts.get("run_id"), manifest.facts.get("step")
    number = CHECKPOINT.fullmatch(folder.name)
    if run is not None and owner != run:
        raise CheckpointError(
            f"{folder}: is a checkpoint of another run ({one_line(str(owner))}, not {run})"
        )
    if number is not None and step != int(number[1]):
        raise CheckpointError(f"{folder}: holds step {one_line(str(step))}; its name was changed")
    try:
        there = set(_file_names(folder)) - {MANIFEST}
        for odd in sorted(there ^ manifest.files.keys()):
            problem = "is not in the manifest" if odd in there else "is missing"
            raise CheckpointError(f"{folder}: {one_line(odd)} {problem}")
        for name, entry in manifest.files.items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
                raise CheckpointError(
                    f"{folder}: {name} is damaged: its sha256 is not the manifest's"
                )
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror or error})") from error
    return manifest


def published(run: Path) -> list[Path]:
    """Return the checkpoints of ``run``, newest first, damaged ones included."""
    found = [
        (int(match[1]), path)
        for path in (run.iterdir() if run.is_dir() else ())
        if path.is_dir() and (match := CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def step_of(folder: Path) -> int:
    """Return the step of a checkpoint's name.

    Raises:
        CheckpointError: The folder has another name.
    """
    match = CHECKPOINT.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(f"{folder}: expected a folder named checkpoint-STEP")
    return int(match[1])


def newest_complete(
    run: Path, owner: str | None = None
) -> tuple[tuple[Path, Manifest] | None, list[str]]:
    """Return the newest undamaged checkpoint of ``run``, and why newer ones were passed over.

    Args:
        run: The run's folder.
        owner: The run's id; checkpoints of another are passed over.
    """
    passed_over: list[str] = []
    for folder in published(run):
        try:
            return (folder, verify(folder, owner)), passed_over
        except CheckpointError as error:
            passed_over.append(str(error))
    return None, passed_over


def set_aside_newer(run: Path, step: int) -> list[Path]:
    """Rename the checkpoints past ``step``, whose numbers the run will need; return the new names.

    Nothing is deleted: what was passed over may be all that is left of something.
    """
    renamed = []
    for folder in published(run):
        if step_of(folder) > step:
            new = folder.with_name(SET_ASIDE + folder.name)
            count = 1
            while os.path.lexists(new):
                count += 1
                new = folder.with_name(f"{SET_ASIDE}{folder.name}.{count}")
            with disk_errors(folder):
                folder.rename(new)
            renamed.append(new)
    return renamed


def prune(
    run: Path, keep: int, needed: Callable[[Path], Collection[int]] = lambda kept: ()
) -> None:
    """Remove all but the ``keep`` newest checkpoints, and those that they need.

    Args:
        run: The run's folder.
        keep: How many stay by their age.
        needed: From one of these to the steps of others without which it cannot be resumed from.
    """
    found = published(run)
    spared = {step for folder in found[:keep] for step in needed(folder)}
    for folder in found[keep:]:
        if step_of(folder) not in spared:
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a published folder, if it is there; it leaves its name before its files go."""
    if folder.exists():
        doomed = folder.with_name(f"{_PRUNED}{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not os.path.lexists(folder):
        raise CheckpointError(f"{folder}: no such folder; expected a checkpoint of a run")
    if folder.is_symlink() or path.is_symlink():
        raise CheckpointError(f"{folder}: is a link; a checkpoint is a folder of its own files")
    try:
        content = read_object(path, largest=_LARGEST_MANIFEST)
        files, stated = content["files"], content.pop("sha256")
        for entry in files.values():
            if not isinstance(entry["sha256"], str) or not isinstance(entry["bytes"], int):
                raise ValueError("an entry is not one of sha256 and bytes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CheckpointError) as error:
        raise CheckpointError(f"{folder}: no readable {MANIFEST} ({error})") from error
    if stated != digest_of(content):
        raise CheckpointError(f"{folder}: {MANIFEST} is damaged: its sha256 is not its own")
    return Manifest(files, {name: value for name, value in content.items() if name != "files"})


def _file_names(folder: Path) -> Iterator[str]:
    """Yield the names of all files below ``folder``, with ``/``, sorted by folder.

    Raises:
        CheckpointError: A link, a device, or a file of a kind that no checkpoint holds.
    """
    for path in sorted(folder.iterdir()):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            yield from (f"{path.name}/{name}" for name in _file_names(path))
        elif not stat.S_ISREG(mode):
            raise CheckpointError(f"{folder}: {path.name} is a link or device, expected a file")
        elif path.suffix not in _SUFFIXES:
            raise CheckpointError(
                f"{folder}: {path.name} is neither safetensors nor JSON; a checkpoint holds no "
                "other files, which could be pickles"
            )
        else:
            yield path.name


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def disk_full(run: Path) -> Iterator[None]:
    """Turn a save that found no room into one error that says how much is missing.

    Whatever writes the files says it in its own words: ``OSError``, safetensors' error with the
    number of the operating system's, torch's about a position in an archive. So an error counts as
    a full disk when it says so, or when the disk has no room for another checkpoint. What was
    staged is removed; published checkpoints stay.

    Raises:
        MachineError: The disk is full, or a quota or limit of file sizes is reached.
    """
    from safetensors import SafetensorError  # who only reads a run has none

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, MachineError) else error
        if cause is None or isinstance(cause, GptossTuneError) or not run.is_dir():
            raise
        staged = _bytes_of(RunFolder(run).staging)
        whole = max((_bytes_of(folder) for folder in published(run)), default=0)
        free, names = shutil.disk_usage(run).free, free_names(run)
        says_so = getattr(cause, "errno", None) in _NO_ROOM or any(
            f"os error {number}" in str(cause) for number in _NO_ROOM
        )
        if not (says_so or free < max(whole - staged, 1)):
            raise
        shutil.rmtree(RunFolder(run).staging, ignore_errors=True)
        newest = next(iter(published(run)), None)
        kept = f"{newest.name} is kept" if newest else "no checkpoint was saved before"
        size = f"about {_mib(whole)}" if whole else f"more than {_mib(staged)}"
        room = (
            f"the disk has {_mib(free + staged)} free, or a quota or limit of file sizes ends "
            f"before that ({cause})"
        )
        todo = "free space"
        if names == 0:
            room, todo = f"the disk has {NO_NAMES}", "remove files"
        raise MachineError(
            f"{run}: no room for a checkpoint: it needs {size}, {room}. {kept}, nothing "
            f"half-written was left; {todo}, then the same command continues"
        ) from error


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
