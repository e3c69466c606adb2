"""Bounded reading: data files that unpack or parse to more than they should are refused.

A compressed file of a megabyte can hold a terabyte of zeros, and a line without an end is read into
memory whole. So a compressed file may grow by so much and no more, and lines are read up to the
length that a trainable row can have.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from gptoss_tune.errors import DataError

LONGEST_LINE: Final = 64 << 20
"""Bytes; the longest sample has 131,072 tokens of at most 128 bytes."""
LARGEST_DOCUMENT: Final = 1 << 30
"""Bytes of a file that has to be read whole: a JSON document, a compressed table."""
SMALL: Final = 64 << 20
"""Bytes to which a file may unpack whatever its own size."""
MOST_GROWTH: Final = 200
"""Rows that repeat 20 KB of declarations around a short question shrink to a hundredth."""
MEASURED_FIRST: Final = 16 << 20
"""Bytes of a compressed file up to which it is unpacked once before its first row is rendered: a
second's work, where rendering what a bomb may hold takes minutes."""
_BUFFER: Final = 1 << 20


class Growth:
    """What a file may still unpack to.

    Attributes:
        allowed: Bytes.
        used: Bytes so far.
    """

    def __init__(self, name: str, size: int, *, allowed: int | None = None) -> None:
        """Allow a file of ``size`` bytes what its size gives, or ``allowed``."""
        self._name, self._size = name, size
        self.allowed = max(SMALL, MOST_GROWTH * size) if allowed is None else allowed
        self.used = 0

    def spend(self, count: int) -> None:
        """Count bytes.

        Raises:
            DataError: They are more than is allowed.
        """
        self.used += count
        self.refuse(self.used)

    def refuse(self, total: int) -> None:
        """Refuse a total that is over what is allowed.

        Raises:
            DataError: It is.
        """
        if total > self.allowed:
            raise DataError(
                f"{self._name}: {self._size:,} bytes unpack to more than {self.allowed:,}; the "
                "file is made to fill memory, or to be unpacked first: write its rows as "
                "uncompressed JSON Lines and name that file"
            )


def opened(path: Path, name: str, *, whole: bool) -> IO[bytes]:
    """Open a data file for reading, decompressed when its suffix says so.

    Args:
        path: The file, which is regular.
        name: What to call it in messages.
        whole: Whether it will be read into memory at once.

    Raises:
        OSError: It cannot be opened; reading it may raise DataError, see ``_Growing``.
    """
    suffix = path.suffix.lower()
    if suffix not in (".gz", ".zst"):
        return path.open("rb", buffering=_BUFFER)
    size = path.stat().st_size
    growth = Growth(name, size)
    if whole:
        growth.allowed = min(growth.allowed, LARGEST_DOCUMENT)
    stream: Any
    if suffix == ".gz":
        stream = gzip.GzipFile(path)
    else:
        import pyarrow as pa

        stream = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
    return io.BufferedReader(_Growing(stream, growth), _BUFFER)


def lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield the lines of a file, each with its line feed.

    Raises:
        DataError: A line is longer than any trainable row.
    """
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise DataError(
                f"{name}:{number}: the line has {LONGEST_LINE >> 20} MiB or more, and no row of "
                "that length can be trained on; write one JSON object a line"
            )
        yield line


class _Growing(io.RawIOBase):
    """A decompressed stream that ends in a DataError when it outgrows what it came from."""

    def __init__(self, stream: Any, growth: Growth) -> None:
        self._stream, self._growth = stream, growth

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._growth.spend(len(data))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
