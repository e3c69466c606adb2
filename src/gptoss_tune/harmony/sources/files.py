"""Files -> rows, each with the place it came from.

Every refusal names ``file:line`` (``file:row`` for tables, which have no lines). JSON Lines are
handed on as bytes, so that the parsing can be done by whoever renders them.

The readers of ``datasets`` were the alternative: their errors name a table and a chunk, a duplicate
key takes the last value, a broken line ends the whole load, and a column that is missing from one
row comes back as null in the tools' schemas of all others.
"""

from __future__ import annotations

import csv
import io
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.sources.bounded_file import LONGEST_LINE, MEASURED_FIRST, opened
from gptoss_tune.harmony.sources.content import ARCHIVES, HEAD, refuse_other_content
from gptoss_tune.harmony.sources.documents import JSON_CELLS, read_json, read_jsonl
from gptoss_tune.harmony.sources.rows import Located, parse_json
from gptoss_tune.harmony.sources.tables import read_arrow, read_parquet

COMPRESSIONS: Final = (".gz", ".zst")
_TABLES: Final = {".parquet": read_parquet, ".arrow": read_arrow}
_LEAST_ON_DISK: Final = 200
_SPARSE_FROM: Final = 1 << 30


def format_suffix(path: str | Path) -> str:
    """Return the suffix that names the format, without the one of the compression."""
    file = Path(path)
    return (
        Path(file.stem).suffix.lower()
        if file.suffix.lower() in COMPRESSIONS
        else (file.suffix.lower())
    )


def refuse_unreadable(path: Path, name: str) -> None:
    """Refuse a file that no reader should start on, by a look at its ends.

    Args:
        path: The file.
        name: What to call it in messages, as the recipe spells it.

    Raises:
        DataError: It is empty, a pipe or a device, mostly holes, of no known format, or holds
            something else than its name says.
    """
    suffix = format_suffix(path)
    try:
        if not path.is_file():
            raise DataError(
                f"{name}: is no regular file; expected a data file, write the rows to one first"
            )
        about = path.stat()
        if about.st_size == 0:
            raise DataError(f"{name}: the file is empty; expected at least one row")
        if about.st_size > _SPARSE_FROM and about.st_blocks * 512 < about.st_size // _LEAST_ON_DISK:
            raise DataError(
                f"{name}: says {about.st_size:,} bytes and has {about.st_blocks * 512:,} on disk, "
                "the rest are holes; write it again"
            )
        if suffix not in READERS:
            _refuse_format(path, name, suffix)
        compression = path.suffix.lower()
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(-min(about.st_size, HEAD), os.SEEK_END)
            tail = file.read(HEAD)
        refuse_other_content(head, name, compression if compression in COMPRESSIONS else suffix)
    except OSError as error:
        raise _unreadable(name, error) from None
    if suffix not in _TABLES and compression not in COMPRESSIONS and not tail.strip(b"\0"):
        raise DataError(
            f"{name}: ends in {len(tail):,} zero bytes, so it was not written to its end; write it "
            "again"
        )


def read_file(path: Path, name: str) -> Iterator[Located]:
    """Yield the rows of a data file: a suffix of ``READERS``, also as .gz or .zst.

    Args:
        path: The file.
        name: What to call it in messages, as the recipe spells it.

    Raises:
        DataError: The file as a whole cannot be read. A row that cannot be read is yielded as the
            error that says why.
    """
    refuse_unreadable(path, name)
    suffix = format_suffix(path)
    compressed = path.suffix.lower() in COMPRESSIONS
    try:
        if suffix in _TABLES and not compressed:
            yield from _TABLES[suffix](str(path), path.stat().st_size, name)
            return
        if compressed and path.stat().st_size <= MEASURED_FIRST:
            with opened(path, name, whole=suffix in (".json", *_TABLES)) as file:
                while file.read(1 << 20):
                    pass
        with opened(path, name, whole=suffix in (".json", *_TABLES)) as file:
            if compressed and isinstance(file, io.BufferedReader):
                refuse_other_content(file.peek(HEAD)[:HEAD], name, suffix)
            yield from READERS[suffix](file, name)
    except OSError as error:
        raise _unreadable(name, error) from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{name}: the compressed file is cut off or damaged ({error})") from None


def _unreadable(name: str, error: OSError) -> DataError:
    reason = error.strerror or str(error)
    return DataError(
        f"{name}: cannot be read ({reason}); check that the file is whole and readable"
    )


def _refuse_format(path: Path, name: str, suffix: str) -> None:
    if suffix in ARCHIVES:
        raise DataError(f"{name}: is an archive; unpack it and name the files in it")
    raise DataError(
        f"{name}: the format of {suffix or 'a file without a suffix'} is not known; expected "
        f"{', '.join(READERS)}, also compressed as {' or '.join(COMPRESSIONS)}"
    )


def _read_csv(file: IO[bytes], name: str) -> Iterator[Located]:
    csv.field_size_limit(LONGEST_LINE)  # a message may be longer than the module's 128 KiB
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(iter(lambda: text.readline(LONGEST_LINE), ""), strict=True)
    header_read = False
    while True:
        at = f"{name}:{reader.line_num + 1}"
        try:
            if not header_read:
                header_read = reader.fieldnames is not None
                continue
            row = next(reader)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise DataError(
                f"{at}: not UTF-8 (0x{error.object[error.start]:02x}) here or in the lines after; "
                "save the file as UTF-8"
            ) from None
        except csv.Error as error:
            raise DataError(f"{at}: not CSV ({error}); quote cells that hold quotes") from None
        if None in row or None in row.values():
            yield (
                at,
                DataError(
                    f"{at}: the row has {'more' if None in row else 'fewer'} cells than the "
                    "header; quote cells that hold commas or line breaks"
                ),
            )
            continue
        try:
            yield at, {key: _cell(key, cell, at) for key, cell in row.items() if cell != ""}
        except DataError as error:
            yield at, error


def _cell(key: str, cell: str, at: str) -> object:
    if key in JSON_CELLS:
        return parse_json(cell.encode(), f"{at} ({key})")
    if key == "weight":
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell


def _read_table(suffix: str) -> Callable[[IO[bytes], str], Iterator[Located]]:
    """Return the reader of a table that was compressed, which has to be in memory whole."""

    def read(file: IO[bytes], name: str) -> Iterator[Located]:
        import pyarrow as pa

        raw = file.read()
        source = pa.BufferReader(raw) if suffix == ".parquet" else raw
        return _TABLES[suffix](source, len(raw), name)

    return read


def _read_text(file: IO[bytes], name: str) -> Iterator[Located]:
    """Yield a whole file as one document of raw text."""
    raw = file.read(LONGEST_LINE + 1).removeprefix(b"\xef\xbb\xbf")
    at = f"{name}:1"
    if len(raw) > LONGEST_LINE:
        raise DataError(
            f"{name}: has over {LONGEST_LINE >> 20} MiB, and one file is one document; cut it into "
            'several files, or write its parts as JSON Lines: {"text": ...}'
        )
    try:
        yield at, {"text": raw.decode("utf-8")}
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: not UTF-8 (0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from None


READERS: Final[dict[str, Callable[[IO[bytes], str], Iterator[Located]]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": _read_csv,
    ".txt": _read_text,
    ".parquet": _read_table(".parquet"),
    ".arrow": _read_table(".arrow"),
}
