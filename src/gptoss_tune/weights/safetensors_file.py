"""One safetensors file: its header, its tensors read by offset, and a writer with a planned layout.

The format is eight bytes of header length, a JSON header ``{name: {dtype, shape, data_offsets}}``
and the tensors' bytes without holes. Reading the header is enough to know whether a file is whole,
which is why every check here costs no more than that.

Tensors are read into memory of their own. The rejected alternative is the memory map
of ``safetensors.safe_open``: it is as fast, but a map keeps every page it touched inside the
process, so the bound "a few tensors" could be neither promised nor measured; and a file truncated
under a map kills the process with SIGBUS instead of raising.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.positioned import read_at
from gptoss_tune.files.regular import flag
from gptoss_tune.files.strict_json import parse
from gptoss_tune.weights.layouts.tensors import TensorEntry, TensorSpec

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes of the format that occur in gpt-oss checkpoints and adapters."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the limit of the reference implementation
_LONGEST_NAME = 1000
_MOST_AXES = 8
_METADATA = "__metadata__"


class SafetensorsFile:
    """A safetensors file opened for reading; refuses a damaged one when it is opened."""

    def __init__(self, path: Path) -> None:
        """Read and check the header of ``path``.

        Raises:
            CheckpointError: No such file, no safetensors header, or a size the header denies.
        """
        self.path = path
        self._descriptor: int | None = None
        self.metadata, self.entries = read_header(path)

    def rename(self, names: Mapping[str, str]) -> None:
        """Let the tensors be read under other names: ``{name in the file: name}``."""
        self.entries = {
            names[stored]: entry.named(names[stored]) for stored, entry in self.entries.items()
        }

    def read(self, name: str) -> Tensor:
        """Return the tensor ``name`` in memory of its own, on the CPU.

        Raises:
            CheckpointError: The file ends before the tensor does (it was cut while open).
        """
        return self.read_entry(self.entries[name])

    def read_entry(self, entry: TensorEntry) -> Tensor:
        """Return a tensor, or a part of one, by its place in this file."""
        tensor = torch.empty(entry.spec.shape, dtype=entry.spec.dtype)
        self._fill(tensor, entry.offset)
        return tensor

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Return ``tensor[start:stop]`` along the first axis, reading those bytes alone."""
        return self.read_entry(self.entries[name].rows(name, start, stop))

    def first_bytes(self, name: str, count: int) -> bytes:
        """Return at most ``count`` bytes from the start of the tensor's data."""
        entry = self.entries[name]
        found = memoryview(bytearray(min(count, entry.spec.nbytes)))
        return bytes(found[: read_at(self.descriptor, found, entry.offset)])

    def prefetch(self, name: str) -> None:
        """Ask the kernel to read ``name`` ahead of its use; returns at once."""
        self.prefetch_entry(self.entries[name])

    def prefetch_entry(self, entry: TensorEntry) -> None:
        """Ask the kernel to read a tensor, or a part of one, by its place in this file."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(
                self.descriptor, entry.offset, entry.spec.nbytes, os.POSIX_FADV_WILLNEED
            )

    @property
    def descriptor(self) -> int:
        """The open file descriptor, opened on first use."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | flag("O_BINARY"))
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor; a later read opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        """Close the descriptor with the object."""
        with contextlib.suppress(AttributeError, OSError):
            self.close()

    def _fill(self, tensor: Tensor, offset: int) -> None:
        """Read ``tensor.nbytes`` bytes at ``offset`` into ``tensor``."""
        if tensor.nbytes == 0:
            return
        view = tensor.view(-1).view(torch.uint8).numpy().data
        done = 0
        while done < len(view):
            count = read_at(self.descriptor, view[done:], offset + done)
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: ends at byte {offset + done}, a tensor was expected to reach "
                    f"{offset + len(view)}; the file was cut while it was read, copy it again"
                )
            done += count


class _UnknownDtype(Exception):
    """A header names a dtype beyond ``DTYPES``."""


def read_header(path: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Return a file's metadata and its tensors by name, after checking that the file is whole.

    Whole means: the data of the tensors cover the file to its last byte, each byte once. A file in
    which two names share bytes, or bytes belong to none, can hold what no check of ours has seen.

    Raises:
        CheckpointError: The file is missing, is no safetensors file, holds a dtype unknown here,
            or its size differs from what the header promises.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise CheckpointError(
                f"{path}: is no regular file; expected safetensors, copy it again"
            )
        size = about.st_size
        with path.open("rb") as file:
            prefix = file.read(_LENGTH_BYTES)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == _LENGTH_BYTES else 0
            raw = file.read(length) if 0 < length <= min(_LONGEST_HEADER, size) else b""
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; copy or download it again") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if not raw or len(raw) < length:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({size} bytes, the header alone should have "
            f"{length}); copy or download it again"
        )
    try:
        header = parse(raw)
        metadata = _metadata(header.pop(_METADATA, {}))
        entries = dict(_entries(header, _LENGTH_BYTES + length))
    except _UnknownDtype as error:
        raise CheckpointError(
            f"{path}: {error}, a dtype that no gpt-oss checkpoint or adapter has here; expected "
            f"one of {', '.join(DTYPES)}: save it again in bf16, or "
            "where it is quantised start from what it was made of, or from the release"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its safetensors header cannot be read ({error}); copy or download it again"
        ) from None
    end = _LENGTH_BYTES + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.spec.nbytes)):
        if entry.offset != end:
            found = "overlaps the data before it" if entry.offset < end else "leaves a hole before"
            raise CheckpointError(
                f"{path}: the data of '{entry.spec.name}' {found}; every byte belongs to one "
                "tensor, the file is damaged or made to deceive, copy it again from its source"
            )
        end += entry.spec.nbytes
    if end != size:
        raise CheckpointError(
            f"{path}: {size} bytes on disk, {end} according to its header; the file is "
            "truncated or damaged, copy or download it again"
        )
    return metadata, entries


def _metadata(value: object) -> dict[str, str]:
    """Return the free texts of a header, which the format wants to be texts."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{_METADATA} is no object of texts")
    return value


def _entries(header: dict[str, dict], base: int) -> Iterable[tuple[str, TensorEntry]]:
    """Yield the entries of a parsed header whose data begin at byte ``base``."""
    for name, item in header.items():
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ValueError(f"the name {name[:60]!a} is no name of a tensor")
        if item["dtype"] not in DTYPES:
            raise _UnknownDtype(f"'{name}' is {str(item['dtype'])[:20]!a}")
        shape = tuple(_whole(size, f"a size of {name}") for size in item["shape"])
        if len(shape) > _MOST_AXES:
            raise ValueError(f"{name} has {len(shape)} axes")
        spec = TensorSpec(name, DTYPES[item["dtype"]], shape)
        start, stop = (_whole(offset, f"an offset of {name}") for offset in item["data_offsets"])
        if stop - start != spec.nbytes:
            raise ValueError(f"{name} claims {stop - start} bytes, its shape needs {spec.nbytes}")
        yield name, TensorEntry(spec, base + start)


def _whole(value: object, what: str) -> int:
    """Return a size or an offset: a whole number that 63 bits can hold."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{what} is {str(value)[:40]}")
    return value


def header_bytes(specs: Iterable[TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """Return the start of a file that holds ``specs`` in this order, and each data's offset.

    The bytes depend on the specs alone, so that two runs, or one run resumed, write equal files.

    Returns:
        Length, JSON header padded with blanks to eight bytes, and ``{name: offset in the file}``.
    """
    header: dict[str, object] = {_METADATA: {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for spec in specs:
        offsets[spec.name] = end
        header[spec.name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.nbytes],
        }
        end += spec.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    start = struct.pack("<Q", len(raw)) + raw
    return start, {name: len(start) + offset for name, offset in offsets.items()}


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor without a copy."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
