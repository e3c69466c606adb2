"""Files -> rows, each with the place it came from.

A row is what the file says: a JSON object with unique keys and finite numbers, in strict UTF-8.
Every refusal names ``file:line`` (``file:row`` for Parquet, which has no lines). JSON Lines are
handed on as bytes, so that the parsing can be done by whoever renders them.

The readers of ``datasets`` were the alternative: their errors name a table and a chunk, a duplicate
key takes the last value, a broken line ends the whole load, and a column that is missing from one
row comes back as null in the tools' schemas of all others.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import kind
from gptoss_tune.harmony.sources.bounded_file import LARGEST_DOCUMENT, LONGEST_LINE, lines, opened

Raw = bytes | dict[str, Any] | DataError
"""A line of JSON still to be parsed, a row, or why there is none."""
Located = tuple[str, Raw]
"""``file:line`` and what is there."""

COMPRESSIONS: Final = (".gz", ".zst")
_PARQUET_ROWS: Final = 64
_BOM: Final = b"\xef\xbb\xbf"
_JSON_CELLS: Final = (
    "messages",
    "conversations",
    "tools",
    "response_format",
    "channel_weights",
    "builtin_tools",
)


def format_suffix(path: str | Path) -> str:
    """Return the suffix that names the format, without the one of the compression."""
    file = Path(path)
    return (
        Path(file.stem).suffix.lower()
        if file.suffix.lower() in COMPRESSIONS
        else (file.suffix.lower())
    )


def read_file(path: Path, name: str) -> Iterator[Located]:
    """Yield the rows of a data file: .jsonl, .json, .csv or .parquet, also as .gz or .zst.

    Args:
        path: The file.
        name: What to call it in messages, as the recipe spells it.

    Raises:
        DataError: The file as a whole cannot be read. A row that cannot be read is yielded as the
            error that says why.
    """
    reader = READERS.get(format_suffix(path))
    if reader is None:
        raise DataError(
            f"{name}: the format of {path.suffix or 'a file without a suffix'} is not known; "
            f"expected {', '.join(READERS)}, also compressed as {' or '.join(COMPRESSIONS)}"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{name}: the file is empty; expected at least one row")
        if reader is _read_parquet and path.suffix.lower() not in COMPRESSIONS:
            yield from _read_parquet_file(str(path), name)
            return
        if not path.is_file():
            raise DataError(f"{name}: is no regular file; expected a data file")
        with opened(path, name, whole=reader in (_read_json, _read_parquet)) as file:
            yield from reader(file, name)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{name}: cannot be read ({reason}); check that the file is whole and readable"
        ) from None
    except (EOFError, zlib.error) as error:
        raise DataError(f"{name}: the compressed file is cut off or damaged ({error})") from None


def parse_object(raw: bytes, at: str) -> dict[str, Any]:
    """Return the JSON object in ``raw``.

    Raises:
        DataError: It is not UTF-8, not JSON, not an object, or says a key twice.
    """
    value = _parse_json(raw, at)
    if not isinstance(value, dict):
        raise DataError(f"{at}: the row is {kind(value)}; expected an object such as a chat row")
    return value


def _read_jsonl(file: IO[bytes], name: str) -> Iterator[Located]:
    for number, raw in enumerate(lines(file, name), start=1):
        line = raw.removeprefix(_BOM) if number == 1 else raw
        if not line.isspace() and line:
            yield f"{name}:{number}", line


def _read_json(file: IO[bytes], name: str) -> Iterator[Located]:
    """One document: a list of rows, an object that wraps one, or a single row."""
    raw = file.read().removeprefix(_BOM)
    value = _parse_json(raw, f"{name}:1")
    rows = [value]
    if isinstance(value, list):
        rows = value
    elif isinstance(value, dict) and len(value) == 1:
        key, inner = next(iter(value.items()))
        if isinstance(inner, list) and key not in _JSON_CELLS:
            rows = inner
    wrapped = rows[:1] != [value]
    lines = _lines_of_elements(raw.decode("utf-8")) if wrapped else iter([1])
    for index, row in enumerate(rows):
        at = f"{name}:{next(lines, 1)} (row {index + 1})"
        if isinstance(row, dict):
            yield at, row
        else:
            yield at, DataError(f"{at}: the row is {kind(row)}; expected an object")


def _lines_of_elements(text: str) -> Iterator[int]:
    """Yield the line on which each element of a valid ``[...]`` or ``{"key": [...]}`` starts."""
    decoder = json.JSONDecoder()
    wrapped = text.lstrip().startswith("{")
    after_key = decoder.raw_decode(text, text.index('"'))[1] if wrapped else 0
    position = text.index("[", after_key) + 1
    line, counted = 1, 0
    while True:
        while text[position] in " \t\r\n,":
            position += 1
        if text[position] == "]":
            return
        line += text.count("\n", counted, position)
        counted = position
        yield line
        position = decoder.raw_decode(text, position)[1]


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
    if key in _JSON_CELLS:
        return _parse_json(cell.encode(), f"{at} ({key})")
    if key == "weight":
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell


def _read_parquet(file: IO[bytes], name: str) -> Iterator[Located]:
    import pyarrow as pa

    yield from _read_parquet_file(pa.BufferReader(file.read()), name)


def _read_parquet_file(source: Any, name: str) -> Iterator[Located]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(source)
        number = 0
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
            if batch.nbytes > LARGEST_DOCUMENT:
                raise DataError(
                    f"{name}: {_PARQUET_ROWS} rows have {batch.nbytes:,} bytes, and no row of that "
                    "size can be trained on; write shorter rows"
                )
            for row in batch.to_pylist():
                number += 1
                yield f"{name}:{number}", without_nulls(row)
    except (pa.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: not a whole Parquet file ({reason}); write it again") from None


def without_nulls(value: Any) -> Any:
    """Return a table's value without the keys that are null.

    A column of structs gives every row the keys of all rows: a tool's schema would gain the
    parameters of every other tool.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _parse_json(raw: bytes, at: str) -> Any:
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise DataError(
            f"{at}: byte {error.start + 1} is not UTF-8 (0x{raw[error.start]:02x}); save the file "
            "as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        raise DataError(
            f"{at}: {place} is not JSON ({error.msg}); expected one whole JSON value"
        ) from None
    except RecursionError:
        raise DataError(f"{at}: nested too deeply to read; flatten the row") from None
    except ValueError as error:
        raise DataError(f"{at}: {error}") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:60]!a} is there twice in one object; keep one")
    return unique


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON; write a number or null")


READERS: Final[dict[str, Callable[[IO[bytes], str], Iterator[Located]]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
