"""Reading a GGUF: its keys, its tensors by offset, and whether the file is whole.

The header is read here with bounds on everything that it claims, because a stranger's file decides
what is allocated: ``gguf.GGUFReader`` takes 15 s and 1 GB for the vocabulary of gpt-oss, and maps
the file, so that one that is cut meanwhile kills the process. Reading needs no library. A model in
several files is read as one.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from gptoss_tune.display import one_line
from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.positioned import read_at
from gptoss_tune.files.regular import flag

BLOCK_BYTES = {"MXFP4": (32, 17), "BF16": (1, 2), "F16": (1, 2), "F32": (1, 4)}
"""Values of a block, and its bytes."""
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""The name of one file of several."""
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
"""What each of several files says of itself."""
ARCHITECTURE = "gpt-oss"
_WHAT_IT_IS = ("general.architecture", "general.type")
_MAGIC, _VERSION = b"GGUF", 3
_ALIGNMENT = 32
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f"},
    **{_BOOL: "<?", 10: "<Q", 11: "<q", 12: "<d"},
}
_NAMES = (
    *("UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32"),
    *("BOOL", "STRING", "ARRAY", "UINT64", "INT64", "FLOAT64"),
)
_TYPES = {0: "F32", 1: "F16", 30: "BF16", 39: "MXFP4"}
_MOST_KEYS, _MOST_TENSORS, _MOST_AXES, _MOST_VALUES = 10_000, 1_000_000, 4, 2**24
_LONGEST_TEXT = 64 << 20


@dataclass(frozen=True)
class GgufKey:
    """A key's type, ``UINT32`` or ``ARRAY of STRING``, and its value."""

    type: str
    value: Any


@dataclass(frozen=True)
class GgufEntry:
    """A tensor inside a file.

    Attributes:
        name: llama.cpp's name of it.
        type: ``MXFP4``, ``BF16``, ``F32``; another one by its number, ``type 12``.
        shape: Rows first; the file lists it in reverse.
        offset: Where its data begin, in bytes from the start of the file.
        nbytes: Bytes of its data; 0 of a type unknown here.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GgufFile:
    """One GGUF file opened for reading; refuses a damaged one when it is opened."""

    def __init__(self, path: Path) -> None:
        """Read and check the header of ``path``.

        Raises:
            CheckpointError: No such file, no GGUF, cut, or with a header that nobody writes.
        """
        self.path = path
        self._descriptor: int | None = None
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                raise CheckpointError(f"{path}: is no regular file; expected a GGUF")
            with path.open("rb", buffering=1 << 20) as file:
                self.keys, self.tensors = _header(_Stream(file, about.st_size))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file; expected a GGUF") from None
        except (ValueError, UnicodeDecodeError, struct.error) as error:
            raise CheckpointError(
                f"{path}: not a whole GGUF ({error}); copy or write it again"
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
        for entry in self.tensors.values():
            if entry.offset + entry.nbytes > about.st_size:
                raise CheckpointError(
                    f"{path}: ends inside the data of '{entry.name}' ({about.st_size} bytes, "
                    f"{entry.offset + entry.nbytes} are needed); copy or write it again"
                )

    def read_rows(self, name: str, start: int, stop: int) -> bytearray:
        """Return the bytes of rows ``start`` to ``stop`` of a tensor.

        Raises:
            CheckpointError: The file was cut since it was opened.
        """
        entry = self.tensors[name]
        row = entry.nbytes // entry.shape[0]
        found = bytearray((stop - start) * row)
        view, done = memoryview(found), 0
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | flag("O_BINARY"))
        while done < len(view):
            count = read_at(self._descriptor, view[done:], entry.offset + start * row + done)
            if count == 0:
                raise CheckpointError(f"{self.path}: was cut while '{name}' was read")
            done += count
        return found

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        """Close the file with the object."""
        with contextlib.suppress(AttributeError, OSError):
            self.close()


@dataclass(frozen=True)
class GgufModel:
    """A model in one GGUF or in several, read as one.

    Attributes:
        files: In their order.
        keys: Without those that say which of several files each is.
        tensors: By name, in the order of the files.
    """

    files: tuple[GgufFile, ...]
    keys: Mapping[str, GgufKey]
    tensors: Mapping[str, GgufEntry]

    def read_rows(self, name: str, start: int, stop: int) -> bytearray:
        """Return the bytes of rows of a tensor, as ``GgufFile.read_rows`` does."""
        file = next(file for file in self.files if name in file.tensors)
        return file.read_rows(name, start, stop)

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        for file in self.files:
            file.close()


def open_gguf(place: Path) -> GgufModel:
    """Open the GGUF in a folder, or the one that ``place`` is or is a part of.

    Raises:
        CheckpointError: None is there, or several models; one of its files is missing or damaged.
    """
    paths = gguf_paths(place)
    files = [GgufFile(path) for path in paths]
    for number, file in enumerate(files):
        told = [file.keys[key].value if key in file.keys else None for key in SPLIT_KEYS]
        total = sum(len(each.tensors) for each in files)
        wanted = [number, len(files), total] if len(files) > 1 else [None] * 3
        if told != wanted:
            raise CheckpointError(
                f"{file.path}: says {told} of itself ({', '.join(SPLIT_KEYS)}), expected {wanted}; "
                "the files are not of one model, or have been renamed"
            )
    tensors: dict[str, GgufEntry] = {}
    for file in files:
        for name, entry in file.tensors.items():
            if name in tensors:
                raise CheckpointError(f"{file.path}: '{name}' is in two files; keep those of one")
            tensors[name] = entry
    keys = {name: key for name, key in files[0].keys.items() if name not in SPLIT_KEYS}
    return GgufModel(tuple(files), keys, tensors)


def gguf_paths(place: Path) -> list[Path]:
    """Return the files of the GGUF in a folder, or of the one that ``place`` is a part of.

    Raises:
        CheckpointError: None is there, or several models; one of several files is missing.
    """
    listed = sorted(place.glob("*.gguf")) if place.is_dir() else [place]
    if not listed:
        raise CheckpointError(f"{place}: holds no .gguf file")
    if not place.exists():
        raise CheckpointError(f"{place}: no such file; expected a GGUF")
    match = PART.fullmatch(listed[0].name)
    if match is None:
        if len(listed) > 1:
            raise CheckpointError(
                f"{place}: holds {len(listed)} GGUF files ({listed[0].name}, {listed[1].name}); "
                "name the one that is meant"
            )
        return listed
    count = int(match["count"])
    wanted = [
        listed[0].with_name(f"{match['stem']}-{n:05}-of-{count:05}.gguf")
        for n in range(1, count + 1)
    ]
    if missing := [path.name for path in wanted if not path.is_file()]:
        raise CheckpointError(f"{place}: {missing[0]} is missing, one of {count} files; copy it")
    if other := sorted(set(listed) - set(wanted)):
        raise CheckpointError(
            f"{place}: holds {other[0].name} beside the files of {match['stem']}; name the one "
            "that is meant"
        )
    return wanted


def is_gguf(place: Path) -> bool:
    """Return whether a path names a GGUF: such a file, or a folder with one and no checkpoint."""
    if place.is_dir():
        return not (place / "config.json").is_file() and any(place.glob("*.gguf"))
    return place.suffix == ".gguf"


def refuse_gguf(place: Path) -> None:
    """Refuse a GGUF where the folder of a checkpoint is expected.

    Raises:
        CheckpointError: ``place`` is one; says what reads it.
    """
    if is_gguf(place) and place.exists():
        raise CheckpointError(
            f"{place}: is a GGUF, the file of llama.cpp; expected a folder with config.json and "
            "safetensors. `chat`, `verify`, `push --merged` and `serve-config --target ollama`, "
            "`lm-studio` or `llama.cpp` read a GGUF; `merge --format bf16` or `mxfp4` writes the "
            "same weights for all else"
        )


def refuse_no_model(place: Path | str, model: GgufModel) -> None:
    """Refuse a GGUF of factors alone, or of another architecture; asked of its header.

    Raises:
        CheckpointError: Says what it is, and what is wanted.
    """
    told = [model.keys[key].value if key in model.keys else None for key in _WHAT_IT_IS]
    architecture, kind = told[0], "model" if told[1] is None else told[1]
    if architecture == ARCHITECTURE and kind == "model":
        return
    way = "gptoss-tune merge RUN --format gguf --out DIR writes one"
    if kind == "adapter":
        way = (
            f"its factors are applied beside their base's: llama-server --model BASE.gguf --lora "
            f"{shlex.quote(str(model.files[0].path))}; or {way} with them inside"
        )
    raise CheckpointError(
        f"{place}: is a GGUF {kind!a:.60} of {architecture!a:.60}; expected a model of "
        f"'{ARCHITECTURE}'; {way}"
    )


def read_header(start: bytes) -> tuple[dict[str, GgufKey], dict[str, GgufEntry]]:
    """Return the keys and tensors that the start of a file lists.

    Raises:
        ValueError: It is no header.
    """
    return _header(_Stream(io.BytesIO(start), len(start)))


class _Stream:
    """The header of a file, read in order and within the file's size."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.place = file, size, 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.place:
            raise ValueError(f"its header goes on behind its end, at byte {self.size}")
        self.place += count
        return self.file.read(count)

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, most: int, what: str) -> int:
        found = self.scalar("<Q")
        if found > most:
            raise ValueError(f"it claims {found} {what}; at most {most} are read")
        return found

    def text(self) -> str:
        return self.take(self.count(_LONGEST_TEXT, "bytes of a text")).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind not in _SCALARS:
            raise ValueError(f"it has a value of type {kind}")
        return self.scalar(_SCALARS[kind])


def _header(stream: _Stream) -> tuple[dict[str, GgufKey], dict[str, GgufEntry]]:
    """Return the keys and the tensors that a header lists."""
    if stream.take(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = stream.scalar("<I")
    if version != _VERSION:
        raise ValueError(f"it is of version {version}, expected {_VERSION}")
    tensors = stream.count(_MOST_TENSORS, "tensors")
    keys = dict(_keys(stream, stream.count(_MOST_KEYS, "keys")))
    alignment = keys["general.alignment"].value if "general.alignment" in keys else _ALIGNMENT
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20:
        raise ValueError(f"its alignment is {alignment!r:.40}")
    listed = [_tensor(stream) for _ in range(tensors)]
    start = stream.place + -stream.place % alignment
    entries = {}
    for name, kind, shape, offset in listed:
        known = _TYPES.get(kind, f"type {kind}")
        values, size = BLOCK_BYTES.get(known, (1, 0))
        if name in entries:
            raise ValueError(f"it has two tensors '{one_line(name)[:60]}'")
        if offset % alignment or (shape and shape[-1] % values):
            raise ValueError(f"'{one_line(name)[:60]}' does not lie in whole blocks")
        nbytes = prod(shape) // values * size
        entries[name] = GgufEntry(name, known, shape, start + offset, nbytes)
    _refuse_overlaps(list(entries.values()))
    return keys, entries


def _keys(stream: _Stream, count: int) -> Iterator[tuple[str, GgufKey]]:
    """Yield the keys of a header."""
    seen = set()
    for _ in range(count):
        name, kind = stream.text(), stream.scalar("<I")
        if name in seen:
            raise ValueError(f"it has the key '{one_line(name)[:60]}' twice")
        seen.add(name)
        if kind != _ARRAY:
            value = stream.value(kind)
            yield name, GgufKey(_NAMES[kind], value)
            continue
        item = stream.scalar("<I")
        values = [stream.value(item) for _ in range(stream.count(_MOST_VALUES, "values"))]
        yield name, GgufKey(f"ARRAY of {_NAMES[item] if item < len(_NAMES) else item}", values)


def _tensor(stream: _Stream) -> tuple[str, int, tuple[int, ...], int]:
    """Return name, type, shape and offset of the next tensor."""
    name, axes = stream.text(), stream.scalar("<I")
    if not name.isprintable() or not 1 <= axes <= _MOST_AXES:
        raise ValueError(f"{name[:60]!a} with {axes} axes is no tensor")
    shape = tuple(stream.scalar("<Q") for _ in range(axes))
    if not 1 <= prod(shape) < 2**50:
        raise ValueError(f"'{name[:60]}' has the shape {list(shape)}")
    return name, stream.scalar("<I"), tuple(reversed(shape)), stream.scalar("<Q")


def _refuse_overlaps(entries: Sequence[GgufEntry]) -> None:
    """Refuse a header in which two tensors share bytes."""
    end, before = 0, ""
    for entry in sorted(entries, key=lambda each: each.offset):
        if entry.offset < end:
            raise ValueError(f"'{entry.name}' overlaps '{before}'")
        end, before = entry.offset + entry.nbytes, entry.name
