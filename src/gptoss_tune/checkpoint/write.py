"""Writing a checkpoint: shards planned from shapes, index, and a folder named only when whole.

Everything a shard file will hold is known before its first tensor is computed, so the header is
written first and tensors stream behind it: peak memory is a tensor, not a shard. A folder is filled
under a staging name beside its final one and renamed at the end; a reader never sees half of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gptoss_tune.checkpoint.safetensors_file import TensorSpec, header_bytes, tensor_bytes
from gptoss_tune.errors import CheckpointError, MachineError

MAX_SHARD_SIZE = 5_000_000_000
"""Bytes of tensors in one file at most, as on the Hub (one tensor may be larger)."""

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


@dataclass(frozen=True)
class Shard:
    """One file to be: its name and the tensors in the order of its bytes."""

    name: str
    specs: tuple[TensorSpec, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file, header included."""
        return len(header_bytes(self.specs)[0]) + sum(spec.nbytes for spec in self.specs)


def plan_shards(
    specs: Iterable[TensorSpec], max_shard_size: int = MAX_SHARD_SIZE
) -> tuple[Shard, ...]:
    """Divide tensors over files of at most ``max_shard_size`` bytes, in the model's order.

    Within a file the wider dtypes stand first, so that every tensor is aligned to its own size.
    """
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in sorted(specs, key=lambda spec: natural_order(spec.name)):
        if groups[-1] and filled + spec.nbytes > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.nbytes
    names = (
        [SINGLE_NAME]
        if len(groups) == 1
        else [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    )
    return tuple(
        Shard(name, tuple(sorted(group, key=lambda spec: -spec.dtype.itemsize)))
        for name, group in zip(names, groups, strict=True)
    )


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts ``layers.2`` before ``layers.10`` and the embedding first."""
    first = (0, 0, "") if "embed_tokens" in name else (1, 0, "")
    parts = re.split(r"(\d+)", name)
    return (first, *((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts))


def write_shard(folder: Path, shard: Shard, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write one shard from ``tensors``, which come in any order; the name appears when it is whole.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    start, offsets = header_bytes(shard.specs)
    part = folder / f"{shard.name}.part"
    with disk_errors(part), part.open("wb") as file:
        file.write(start)
        for name, tensor in tensors:
            file.seek(offsets.pop(name))
            file.write(tensor_bytes(tensor))
        assert not offsets, f"tensors planned but not written: {sorted(offsets)}"
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / shard.name)


def index_json(shards: Sequence[Shard]) -> str | None:
    """Return the text of ``model.safetensors.index.json``, or None for a single file."""
    if len(shards) == 1:
        return None
    weight_map = {spec.name: shard.name for shard in shards for spec in shard.specs}
    total = sum(spec.nbytes for shard in shards for spec in shard.specs)
    return to_json({"metadata": {"total_size": total}, "weight_map": weight_map})


def to_json(value: object) -> str:
    """Return ``value`` as the indented JSON of checkpoint folders, keys sorted."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8 so that the file is whole or absent."""
    part = path.with_name(path.name + ".part")
    with disk_errors(path):
        part.write_text(text, encoding="utf-8")
        part.replace(path)


def refuse_existing(out: Path) -> None:
    """Raise when ``out`` already holds something.

    Raises:
        CheckpointError: ``out`` is a file or a folder that is not empty.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise CheckpointError(
            f"{out}: already exists and is never overwritten; choose another output folder or "
            "remove this one"
        )


def staging_folder(out: Path) -> Path:
    """Return the hidden folder beside ``out`` in which ``out`` is prepared."""
    return out.absolute().with_name(f".{out.name}.incomplete")


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes ``out`` on success and vanishes on any error.

    For what is quick to redo; a merge keeps its staging folder to resume (see ``export.merge``).

    Raises:
        CheckpointError: ``out`` already holds something.
        MachineError: The disk is full or read-only.
    """
    refuse_existing(out)
    folder = staging_folder(out)
    with disk_errors(out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        with disk_errors(out):
            yield folder
            publish(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path) -> None:
    """Rename the finished ``folder`` to ``out`` and make the rename durable."""
    if out.is_dir():
        out.rmdir()  # empty, or refuse_existing would have raised
    folder.rename(out)
    descriptor = os.open(out.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one MachineError about ``path``."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full; free space or choose a folder on another disk",
            errno.EDQUOT: "the disk quota is used up; free space or choose another folder",
            errno.EROFS: "the file system is read-only; choose another folder",
            errno.EACCES: "permission denied; choose a folder you may write to",
            errno.EPERM: "permission denied; choose a folder you may write to",
        }.get(error.errno or 0)
        if advice is None:
            raise
        raise MachineError(f"{path}: cannot be written: {advice}") from error
