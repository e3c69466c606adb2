"""Writing a checkpoint: shards planned from shapes, index, and a folder named only when whole.

Everything a shard file will hold is known before its first tensor is computed, so the header is
written first and tensors stream behind it: peak memory is a tensor, not a shard. A folder is filled
under a staging name beside its final one and renamed at the end; a reader never sees half of it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.atomic import create, disk_errors, to_json
from gptoss_tune.files.positioned import read_at, write_at
from gptoss_tune.weights.names import SINGLE_NAME
from gptoss_tune.weights.safetensors_file import (
    SafetensorsFile,
    TensorSpec,
    header_bytes,
    tensor_bytes,
)

MAX_SHARD_SIZE = 5_000_000_000
"""Bytes of tensors in one file at most, as on the Hub (one tensor may be larger)."""

_COPY_BUFFER = 16 << 20


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

    Raises:
        CheckpointError: ``max_shard_size`` is no positive number.
    """
    if max_shard_size < 1:
        raise CheckpointError(
            f"the largest size of a shard is {max_shard_size}; expected a number of bytes above 0"
        )
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


class ShardWriter:
    """One shard being written: tensors come in any order and in parts, the name appears when whole.

    Used as a context manager. Leaving it with an error removes what was written; leaving it without
    one makes the file durable and gives it its name.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        """Prepare to write ``shard`` into ``folder``."""
        self.path = folder / shard.name
        self._part = folder / f"{shard.name}.part"
        self._specs = {spec.name: spec for spec in shard.specs}
        self._start, self._offsets = header_bytes(shard.specs)
        self._missing = sum(spec.nbytes for spec in shard.specs)
        self._descriptor = -1

    def __enter__(self) -> ShardWriter:
        """Create the file and write its header."""
        with disk_errors(self.path):
            self._descriptor = create(self._part)
            write_at(self._descriptor, memoryview(self._start), 0)
        return self

    def write(self, name: str, tensor: Tensor, first_row: int = 0) -> None:
        """Write ``tensor`` as the rows of ``name`` that begin at ``first_row``.

        Raises:
            MachineError: The disk is full or cannot be written.
        """
        spec = self._specs[name]
        assert tensor.dtype == spec.dtype and tensor.shape[1:] == spec.shape[1:], name
        row = spec.nbytes // max(1, spec.shape[0]) if spec.shape else spec.nbytes
        with disk_errors(self.path):
            write_at(self._descriptor, tensor_bytes(tensor), self._offsets[name] + first_row * row)
        self._missing -= tensor.nbytes

    def copy(self, name: str, source: SafetensorsFile) -> None:
        """Copy the bytes of ``name`` from another file, inside the kernel where it can.

        Raises:
            CheckpointError: The source was cut since it was opened.
            MachineError: The disk is full or cannot be written.
        """
        entry = source.entries[name]
        with disk_errors(self.path):
            copied = _copy_range(
                source.descriptor,
                entry.offset,
                self._descriptor,
                self._offsets[name],
                entry.spec.nbytes,
            )
        if copied < entry.spec.nbytes:
            raise CheckpointError(
                f"{source.path}: ends inside '{name}'; the file was cut while it was read, copy "
                "it again"
            )
        self._missing -= copied

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Name the file, or remove it when an error passes through."""
        try:
            if kind is None:
                assert self._missing == 0, f"{self.path}: {self._missing} bytes were never written"
                with disk_errors(self.path):
                    os.fsync(self._descriptor)
                self._close()  # Windows renames no open file
                with disk_errors(self.path):
                    self._part.replace(self.path)
        finally:
            self._close()
            self._part.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _copy_range(source: int, start: int, target: int, offset: int, count: int) -> int:
    """Copy ``count`` bytes between files; return how many there were."""
    done = 0
    if hasattr(os, "copy_file_range"):
        try:
            while done < count:
                moved = os.copy_file_range(
                    source, target, count - done, start + done, offset + done
                )
                if moved == 0:
                    return done
                done += moved
            return done
        except OSError as error:
            # Between some file systems the kernel cannot copy; it says so before the first byte.
            if done or error.errno not in (
                errno.EXDEV,
                errno.EINVAL,
                errno.ENOSYS,
                errno.EOPNOTSUPP,
            ):
                raise
    buffer = bytearray(min(count, _COPY_BUFFER))
    view = memoryview(buffer)
    while done < count:
        read = read_at(source, view[: count - done], start + done)
        if read == 0:
            break
        write_at(target, view[:read], offset + done)
        done += read
    return done


def write_shard(folder: Path, shard: Shard, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write one shard from whole ``tensors``, which come in any order.

    Raises:
        MachineError: The disk is full or the folder cannot be written.
    """
    with ShardWriter(folder, shard) as writer:
        for name, tensor in tensors:
            writer.write(name, tensor)


def index_json(shards: Sequence[Shard]) -> str | None:
    """Return the text of ``model.safetensors.index.json``, or None for a single file."""
    if len(shards) == 1:
        return None
    weight_map = {spec.name: shard.name for shard in shards for spec in shard.specs}
    total = sum(spec.nbytes for shard in shards for spec in shard.specs)
    return to_json({"metadata": {"total_size": total}, "weight_map": weight_map})
