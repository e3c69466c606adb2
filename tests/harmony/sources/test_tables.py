"""Parquet and Arrow: features of ``datasets``, nulls of structs, and tables that hold too much."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.sources import bounded_file
from gptoss_tune.harmony.sources.files import read_file
from gptoss_tune.harmony.sources.open import open_source
from gptoss_tune.harmony.sources.tables import json_plan
from gptoss_tune.recipe import DataSource

CITY = {"city": {"type": "string", "description": "City"}}
NUMBERS = {"a": {"type": "number"}, "b": {"type": "number", "default": None}}


def tool(name, properties):
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


ROWS = [
    {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", "thinking": "t"},
        ],
        "tools": [tool("get_weather", CITY)],
        "response_format": {"json_schema": {"schema": {"properties": {"x": {"const": None}}}}},
    },
    {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
        "tools": [tool("add", NUMBERS), tool("get_weather", CITY)],
    },
]


def rows_of(path):
    return [row for _, row in read_file(path, path.name)]


def features_of(**columns):
    return datasets.Features(columns)


def with_json_at(depth):
    """Features of the rows in which JSON begins at some depth, and all else is a struct."""
    text, json_ = datasets.Value("string"), datasets.Json()
    by_depth = {
        "the column": features_of(messages=json_, tools=json_, response_format=json_),
        "an item": features_of(
            messages=datasets.List(json_), tools=datasets.List(json_), response_format=json_
        ),
        "properties": features_of(
            messages=datasets.List({"role": text, "content": text, "thinking": text}),
            tools=datasets.List(
                {
                    "type": text,
                    "function": {"name": text, "parameters": {"type": text, "properties": json_}},
                }
            ),
            response_format={"json_schema": {"schema": json_}},
        ),
        "in a large list": features_of(
            messages=datasets.LargeList(json_), tools=datasets.List(json_), response_format=json_
        ),
    }
    return by_depth[depth]


@pytest.mark.parametrize("depth", ["the column", "an item", "properties", "in a large list"])
@pytest.mark.parametrize("kind", ["parquet", "stream", "file", "hub", "hub stream"])
def test_json_features_are_read_as_the_values_they_hold(depth, kind, tmp_path, monkeypatch):
    dataset = datasets.Dataset.from_list(ROWS, features=with_json_at(depth))
    path = tmp_path / ("d.parquet" if kind == "parquet" else "d.arrow")
    if kind == "parquet":
        dataset.to_parquet(path)
    elif kind.startswith("hub"):
        streaming = kind == "hub stream"
        found = dataset.to_iterable_dataset() if streaming else dataset
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found)
        source = {"path": "somebody/chats", "revision": "a" * 40, "streaming": streaming}
        opened = open_source(DataSource.model_validate(source))
        assert [row for _, row in opened.rows()] == ROWS
        return
    else:
        table = dataset.data.table
        new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
    assert rows_of(path) == ROWS


def test_json_that_datasets_leaves_as_text_is_parsed_and_text_that_it_parsed_is_not(monkeypatch):
    features = features_of(messages=datasets.Json(decode=False), prompt=datasets.Json())
    dataset = datasets.Dataset.from_list([{"messages": [1], "prompt": "text"}], features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: dataset)
    opened = open_source(DataSource.model_validate({"path": "somebody/chats"}))
    assert [row for _, row in opened.rows()] == [{"messages": [1], "prompt": "text"}]


def test_a_text_that_should_be_json_and_is_not_is_a_rejected_row(tmp_path):
    features = {"tools": {"_type": "Json"}, "a": {"feature": {"_type": "Json"}, "_type": "List"}}
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"tools": pa.array(["[1]", "[", None], pa.large_string()), "a": [["{}"]] * 3})
    pq.write_table(table.replace_schema_metadata(told), tmp_path / "d.parquet")
    rows = rows_of(tmp_path / "d.parquet")
    assert rows[0] == {"tools": [1], "a": [{}]} and rows[2] == {"a": [{}]}
    assert str(rows[1]).startswith("d.parquet:2 (tools): column 2 is not JSON")


@pytest.mark.parametrize("told", [b"{", b"[]", b'{"info": null}', b'{"info": {"features": [3]}}'])
def test_metadata_of_another_tool_is_passed_over(told):
    schema = pa.schema({"a": pa.string()}, metadata={b"huggingface": told})
    assert json_plan(schema) == {}


def test_a_dictionary_that_billions_of_rows_repeat_is_refused_before_it_is_read(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(bounded_file, "SMALL", 1 << 20)
    words = pa.DictionaryArray.from_arrays(
        pa.array([0] * 20_000, pa.int32()), pa.array(["a" * 999])
    )
    listed = pa.ListArray.from_arrays(pa.array(range(20_001), pa.int32()), words)
    for number, column in enumerate((words, listed, pa.StructArray.from_arrays([words], ["x"]))):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"prompt": column}), path, compression="zstd")
        with pytest.raises(DataError, match=r"parquet: [\d,]+ bytes unpack to more than 1,048,576"):
            next(read_file(path, path.name))
    path = tmp_path / "d.arrow"
    table = pa.table({"prompt": words})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    monkeypatch.setattr(bounded_file, "MOST_GROWTH", 2)
    with pytest.raises(DataError, match=r"d.arrow: .* unpack to more than"):
        next(read_file(path, path.name))


def test_rows_of_nothing_are_counted_too(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_file, "SMALL", 1 << 20)
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"prompt": pa.nulls(1_000_000)}), path)
    with pytest.raises(DataError, match="unpack to more than"):
        next(read_file(path, path.name))


def test_a_page_that_claims_too_much_is_refused_by_its_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded_file, "SMALL", 1 << 20)
    path = tmp_path / "d.parquet"
    table = pa.table({"prompt": ["a" * (3 << 20)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match="unpack to more than"):
        next(read_file(path, path.name))


@pytest.mark.parametrize("type_", [pa.string_view(), pa.run_end_encoded(pa.int32(), pa.string())])
def test_columns_whose_values_share_bytes_are_refused(type_, tmp_path):
    path = tmp_path / "d.arrow"
    values = pa.array(["a", "a"])
    if pa.types.is_run_end_encoded(type_):
        import pyarrow.compute as pc

        values = pc.run_end_encode(values)
    else:
        values = values.cast(type_)
    table = pa.table({"prompt": values})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"d.arrow: the column 'prompt' has the Arrow type .* cast"):
        rows_of(path)


def test_dictionaries_of_an_ordinary_size_are_read(tmp_path):
    words = pa.array(["a", "b", None, "a"]).dictionary_encode()
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"prompt": words, "n": [1, 2, 3, 4]}), path)
    assert rows_of(path) == [
        {"prompt": "a", "n": 1},
        {"prompt": "b", "n": 2},
        {"n": 3},
        {"prompt": "a", "n": 4},
    ]


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_buffers_are_refused_before_they_are_unpacked(new, codec, tmp_path):
    path = tmp_path / "d.arrow"
    options = pa.ipc.IpcWriteOptions(compression=codec)
    for table in (
        pa.table({"prompt": ["a" * (1 << 20)]}),
        pa.table({"prompt": pa.array(["a" * (1 << 20)]).dictionary_encode()}),
    ):
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema, options=options) as writer:
            writer.write_table(table)
        with pytest.raises(DataError, match=r"d\.arrow: its buffers are compressed"):
            rows_of(path)


def test_a_cut_arrow_file_and_one_that_is_none(tmp_path):
    path = tmp_path / "d.arrow"
    table = pa.table({"prompt": ["a"] * 1000})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match=r"d\.arrow: (not a whole Arrow file|cannot be read)"):
        rows_of(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"d\.arrow: (not a whole Arrow file|cannot be read)"):
        rows_of(path)
