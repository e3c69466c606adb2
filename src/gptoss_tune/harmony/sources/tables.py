"""Parquet and Arrow files -> rows; what a table cannot say is read from what it says about itself.

A column of structs gives every row the keys of all rows, so keys that are null are left out. A
column, or a part of one at any depth, whose values differ in shape is kept by ``datasets`` as the
text of JSON (its feature ``Json``); the schema's metadata names these parts, and they are parsed.

A table may hold much in little: a dictionary of one text that a billion rows repeat. What rows have
when they are written out is counted before they are, and may grow as a compressed file may.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.sources.bounded_file import LARGEST_DOCUMENT, MEASURED_FIRST, Growth
from gptoss_tune.harmony.sources.rows import Located, parse_json

_ROWS: Final = 64
_BYTES_A_ROW: Final = 16
"""What a row counts at least: a column of nulls has rows without bytes."""
_JSON: Final = "json"
_VALUE: Final = "value"
Plan = str | list[Any] | dict[str, Any] | None
"""Where a value holds JSON: it is the text of some, its value, a list, keys with plans, nowhere."""


def read_parquet(source: str | Any, size: int, name: str) -> Iterator[Located]:
    """Yield the rows of a Parquet file.

    Args:
        source: Path, or a pyarrow file.
        size: Bytes of it.
        name: What to call it in messages.

    Raises:
        DataError: It is no whole Parquet file, or unpacks to more than its size allows.
    """
    import pyarrow as pa
    from pyarrow import parquet

    growth = Growth(name, size)
    try:
        file = parquet.ParquetFile(source)
        growth.refuse(_unpacked_bytes(file.metadata))
        if size <= MEASURED_FIRST:
            measure(file.iter_batches(batch_size=_ROWS), Growth(name, size), name)
        plan = json_plan(file.schema_arrow)
        yield from _rows(file.iter_batches(batch_size=_ROWS), plan, growth, name)
    except (pa.ArrowException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name}: not a whole Parquet file ({_first_line(error)}); write it again"
        ) from None


def read_arrow(source: str | Any, size: int, name: str) -> Iterator[Located]:
    """Yield the rows of an Arrow file, in the stream format or the file format.

    Args:
        source: Path, or a buffer.
        size: Bytes of it.
        name: What to call it in messages.

    Raises:
        DataError: It is no whole Arrow file, or unpacks to more than its size allows.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(source) if isinstance(source, str) else pa.BufferReader(source) as file:
            _refuse_compressed(file, name)
            if size <= MEASURED_FIRST:
                measure(_slices(_arrow_reader(file)), Growth(name, size), name)
            reader = _arrow_reader(file)
            plan = json_plan(reader.schema)
            yield from _rows(_slices(reader), plan, Growth(name, size), name)
    except (pa.ArrowException, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name}: not a whole Arrow file ({_first_line(error)}); write it again"
        ) from None


def _arrow_reader(file: Any) -> Any:
    import pyarrow as pa

    file.seek(0)
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    return pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)


def _refuse_compressed(file: Any, name: str) -> None:
    """Refuse compressed buffers: pyarrow unpacks all of a batch before anything can count it.

    Raises:
        DataError: A batch has some.
    """
    import pyarrow as pa

    file.seek(0)
    file.seek(8 if file.read(6) == b"ARROW1" else 0)  # the file format holds a stream
    for message in pa.ipc.MessageReader.open_stream(file):
        try:
            compressed = _has_compressed_buffers(message)
        except struct.error:
            raise DataError(f"{name}: not a whole Arrow file; write it again") from None
        if compressed:
            raise DataError(
                f"{name}: its buffers are compressed, which is not read; write it without "
                "compression, or as Parquet"
            )


def _has_compressed_buffers(message: Any) -> bool:
    """Whether the batch of a message names a compression, by Arrow's format/Message.fbs.

    A flatbuffer's table starts with the distance back to its vtable, which holds the place of each
    field by its number: 2 of a Message is the header, 3 of a RecordBatch its compression, 1 of a
    DictionaryBatch its RecordBatch.
    """
    raw = message.metadata.to_pybytes()

    def field(table: int, number: int) -> int:
        vtable = table - struct.unpack_from("<i", raw, table)[0]
        if 4 + 2 * number >= struct.unpack_from("<H", raw, vtable)[0]:
            return 0
        place = struct.unpack_from("<H", raw, vtable + 4 + 2 * number)[0]
        return table + place if place else 0

    def follow(place: int) -> int:
        return place + struct.unpack_from("<I", raw, place)[0]

    if message.type not in ("record batch", "dictionary"):
        return False
    batch = follow(field(follow(0), 2))
    if message.type == "dictionary":
        batch = follow(field(batch, 1))
    return field(batch, 3) != 0


def _slices(reader: Any) -> Iterator[Any]:
    """Yield the rows of an Arrow file a few at a time."""
    if hasattr(reader, "num_record_batches"):
        batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        batches = iter(reader)
    for batch in batches:
        for first in range(0, batch.num_rows, _ROWS):
            yield batch.slice(first, _ROWS)


def measure(batches: Iterator[Any], growth: Growth, name: str) -> None:
    """Count what the rows of batches have, without writing them out.

    Raises:
        DataError: More than the file's size allows.
    """
    for batch in batches:
        growth.spend(_batch_bytes(batch, name))


def json_plan(schema: Any) -> dict[str, Any]:
    """Return where the columns of an Arrow schema hold JSON text, by column.

    Its types say so, or the features of ``datasets`` under ``huggingface`` in its metadata.
    """
    features: Any = {}
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = told["info"]["features"]
    except (ValueError, RecursionError, LookupError, TypeError):
        pass  # written by something else, under the same key
    plan = {field.name: _plan_of_type(field.type) for field in schema}
    if isinstance(features, dict):
        for name, feature in features.items():
            if name in plan and plan[name] is None:
                plan[name] = features_plan(feature)
    return {name: found for name, found in plan.items() if found is not None}


def features_plan(feature: Any, *, decoded: bool = False) -> Plan:
    """Return where a feature of ``datasets``, as its dictionary, holds JSON.

    Args:
        feature: ``{"_type": "Json"}``, a list's or a struct's.
        decoded: Whether the rows come from ``datasets``, which has parsed what it does not leave
            as text by the feature's own ``decode: false``.
    """
    if isinstance(feature, list):
        return _listed(features_plan(feature[0], decoded=decoded)) if feature else None
    if not isinstance(feature, dict):
        return None
    kind = feature.get("_type")
    if kind == "Json":
        return _VALUE if decoded and feature.get("decode") is not False else _JSON
    if isinstance(kind, str) and "feature" in feature:
        return _listed(features_plan(feature["feature"], decoded=decoded))
    found = {
        key: features_plan(inner, decoded=decoded)
        for key, inner in feature.items()
        if isinstance(inner, dict | list)
    }
    return {key: plan for key, plan in found.items() if plan is not None} or None


def _listed(plan: Plan) -> Plan:
    return None if plan is None else [plan]


def _plan_of_type(type_: Any) -> Plan:
    import pyarrow as pa

    if getattr(type_, "extension_name", None) == "arrow.json":
        return _JSON
    if pa.types.is_struct(type_):
        found = {field.name: _plan_of_type(field.type) for field in type_}
        return {key: plan for key, plan in found.items() if plan is not None} or None
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return _listed(_plan_of_type(type_.value_type))
    return None


def without_nulls(value: Any, plan: Plan = None, at: str = "") -> Any:
    """Return a table's value without the keys that are null, and its JSON texts parsed.

    Nulls within JSON are not a table's: they stay.

    Raises:
        DataError: A text that should be JSON is none.
    """
    if plan == _VALUE:
        return value
    if plan == _JSON:
        return parse_json(value.encode(), at) if isinstance(value, str) else value
    if isinstance(value, dict):
        plans = plan if isinstance(plan, dict) else {}
        return {
            key: without_nulls(item, plans.get(key), f"{at} ({key})" if key in plans else at)
            for key, item in value.items()
            if item is not None
        }
    if isinstance(value, list):
        inner = plan[0] if isinstance(plan, list) else plan
        return [without_nulls(item, inner, at) for item in value]
    return value


def _rows(batches: Any, plan: dict[str, Any], growth: Growth, name: str) -> Iterator[Located]:
    number = 0
    for batch in batches:
        size = _batch_bytes(batch, name)
        if size > LARGEST_DOCUMENT:
            raise DataError(
                f"{name}: {_ROWS} rows have {size:,} bytes, and no row of that size can be trained "
                "on; write shorter rows"
            )
        growth.spend(size)
        for row in batch.to_pylist():
            number += 1
            at = f"{name}:{number}"
            try:
                yield at, without_nulls(row, plan, at)
            except DataError as error:
                yield at, error


def _unpacked_bytes(metadata: Any) -> int:
    return sum(
        metadata.row_group(group).column(column).total_uncompressed_size
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )


def _batch_bytes(batch: Any, name: str) -> int:
    """Return the bytes of a batch's rows as they are written out."""
    named = zip(batch.schema.names, batch.columns, strict=True)
    written = (_written(array, f"{name}: the column {column[:60]!r}") for column, array in named)
    return _BYTES_A_ROW * batch.num_rows + sum(written)


def _written(array: Any, what: str) -> int:
    """Return the bytes of an array with every repetition of a dictionary's value counted.

    Raises:
        DataError: A type in which values share bytes in other ways.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = pa.types
    if isinstance(array, pa.ExtensionArray):
        return _written(array.storage, what)
    if kinds.is_dictionary(array.type):
        words = array.dictionary
        kind = words.type
        if any(test(kind) for test in (kinds.is_primitive, kinds.is_boolean, kinds.is_null)):
            return array.nbytes + 8 * len(array)
        if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_binary(kind):
            lengths = pc.call_function("binary_length", [words]).take(array.indices)
            return pc.call_function("sum", [lengths]).as_py() or 0
    elif kinds.is_struct(array.type):
        return sum(_written(inner, what) for inner in array.flatten())
    elif kinds.is_list(array.type) or kinds.is_large_list(array.type):
        return 4 * len(array) + _written(array.flatten(), what)
    elif not (
        kinds.is_union(array.type)
        or kinds.is_run_end_encoded(array.type)
        or "view" in str(array.type)
    ):
        return array.nbytes
    raise DataError(
        f"{what} has the Arrow type {str(array.type)[:60]}, which is not read; cast it to string, "
        "list or struct"
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
