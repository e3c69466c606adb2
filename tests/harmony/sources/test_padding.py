"""Null keys of struct padding are left out and counted; nulls that an author meant stay."""

import json

import datasets
import pytest

from gptoss_tune.harmony.dataset.load import render_source
from gptoss_tune.harmony.dataset.render_one import render as render_row
from gptoss_tune.harmony.dataset.statistics import data_statistics
from gptoss_tune.harmony.declarations import SCHEMA_KEYS
from gptoss_tune.harmony.sources.padding import without_padding
from gptoss_tune.recipe import DataSection


def declared(name, properties, **schema):
    parameters = {"type": "object", "properties": properties, **schema}
    return {
        "type": "function",
        "function": {"name": name, "description": "Does.", "parameters": parameters},
    }


def called(name, arguments):
    return {
        "role": "assistant",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
        ],
    }


def row_of(tool, arguments):
    name = tool["function"]["name"]
    return {
        "tools": [tool],
        "messages": [
            {"role": "user", "content": "q"},
            called(name, arguments),
            {"role": "tool", "tool_call_id": "1", "content": "r"},
            {"role": "assistant", "content": "a"},
        ],
    }


STRING = {"type": "string"}
WEATHER = declared("get_weather", {"city": {"type": "string", "description": "City"}})
SUM = declared("add", {"a": {"type": "number"}, "b": {"type": "number"}}, required=["a", "b"])
ROWS = [row_of(WEATHER, {"city": "Oslo"}), row_of(SUM, {"a": 1, "b": 2})]


def texts(path, vocabulary):
    data = DataSection.model_validate({"train": str(path)})
    rendered = render_source(data.train[0], data, vocabulary)
    tokens = rendered.samples.table["input_ids"].to_pylist()
    return [vocabulary.decode(row) for row in tokens], rendered.report.counts


@pytest.mark.parametrize("kind", ["jsonl", "array", "wrapped", "parquet"])
def test_padded_rows_render_as_they_were_before(kind, vocabulary, write_jsonl, tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    padded = [json.loads(json.dumps(row)) for row in dataset]
    assert "null" in json.dumps(padded)
    path = tmp_path / ("d.parquet" if kind == "parquet" else "d.json")
    if kind == "parquet":
        dataset.to_parquet(path)
    elif kind == "jsonl":
        path = write_jsonl(padded)
    else:
        path.write_text(json.dumps(padded if kind == "array" else {"data": padded}))
    expected, _ = texts(write_jsonl(ROWS, "before.jsonl"), vocabulary)
    found, counts = texts(path, vocabulary)
    assert found == expected
    assert '{"city": "Oslo"}' in found[0] and "a?: any" not in found[0]
    # City in row 2, a and b in row 1, each once declared and once called, and what is required.
    assert counts["padding"] == (0 if kind == "parquet" else 7)


def test_the_count_is_told(vocabulary, write_jsonl):
    path = write_jsonl([row_of(WEATHER, {"city": "Oslo", "a": None})])
    data = DataSection.model_validate({"train": path})
    said = data_statistics(data, vocabulary, seed=0).warnings()
    assert "train: 1 null key of tools and calls left out, padding of a table" in said


def test_a_row_in_a_notebook_is_cleaned_too(vocabulary):
    (padded,), (plain,) = (
        render_row(row_of(WEATHER, {"city": "Oslo", **more})) for more in ({"a": None}, {})
    )
    assert padded.input_ids.tolist() == plain.input_ids.tolist()


NULLABLE = {
    "a type of several": {"type": ["string", "null"]},
    "nullable": {"type": "string", "nullable": True},
    "any of": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "one of": {"oneOf": [{"type": "string"}, {"type": "null"}]},
    "an enumeration": {"type": "string", "enum": ["C", None]},
    "its default": {"type": "string", "default": None},
    "no type": {"description": "Anything."},
    "a reference": {"$ref": "#/$defs/unit"},
    "Optional": {"type": "Optional[str]"},
    "a union as programs write it": {"type": "str | None"},
    "a union in a list": {"type": ["str", "None"]},
    "an optional literal": {"type": "Optional[str]", "enum": ["C"]},
    "a name that is no type of JSON schema": {"type": "str, optional"},
    "nullable in a text": {"type": "string", "nullable": "true"},
}


@pytest.mark.parametrize("kind", NULLABLE)
def test_a_null_that_the_declaration_allows_stays(kind):
    row = row_of(declared("f", {"unit": NULLABLE[kind]}), {"unit": None})
    assert without_padding(row) == (row, 0)


def spelled(schema):
    """The same declaration in every place and shape that its reader takes."""
    properties = schema["properties"]
    listed = [{"name": name, **inner} for name, inner in properties.items()]
    for key in SCHEMA_KEYS:
        yield key, {key: schema}
    yield "text", {"parameters": json.dumps(schema)}
    yield "properties in a text", {"parameters": {**schema, "properties": json.dumps(properties)}}
    yield "properties in a list", {"parameters": {**schema, "properties": listed}}
    yield "a list", {"parameters": listed}
    yield "flat", {"parameters": {**properties, "required": []}}
    yield "none beside", {"parameters": None, "input_schema": schema}


SCHEMA = {"type": "object", "properties": {"a": {"type": ["string", "null"]}, "b": {**STRING}}}


@pytest.mark.parametrize("kind", [kind for kind, _ in spelled(SCHEMA)])
@pytest.mark.parametrize("wrapped", ["function", "text", "bare", "alone"])
def test_nulls_are_told_apart_wherever_the_schema_stands(kind, wrapped):
    function = {"name": "f", **dict(spelled(SCHEMA))[kind]}
    entry = {"type": "function", "function": function} if wrapped == "function" else function
    row = row_of({"function": function}, {"a": None, "b": None, "c": None})
    row["tools"] = {"text": [json.dumps(entry)], "alone": entry}.get(wrapped, [entry])
    cleaned, count = without_padding(row)
    assert cleaned["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": None}
    assert count == 2


def test_a_parameter_that_says_itself_that_it_is_required_keeps_its_null():
    row = row_of(declared("f", [{"name": "a", **STRING, "required": True}]), {"a": None})
    assert without_padding(row) == (row, 0)


NOT_UNDERSTOOD = {
    "no JSON": {"parameters": "{a: string}"},
    "two schemas": {"parameters": SCHEMA, "input_schema": SCHEMA},
    "a number": {"parameters": 3},
    "properties that are a number": {"parameters": {"properties": 3}},
    "properties without names": {"parameters": {"properties": [STRING]}},
    "a reference": {"parameters": {"$ref": "#/$defs/x"}},
    "a choice": {"parameters": {"anyOf": [SCHEMA]}},
    "more than its own": {"parameters": {**SCHEMA, "allOf": [SCHEMA]}},
    "any others": {"parameters": {**SCHEMA, "additionalProperties": {}}},
}


@pytest.mark.parametrize("kind", NOT_UNDERSTOOD)
def test_nulls_of_a_call_whose_declaration_is_not_understood_stay(kind):
    row = row_of({"function": {"name": "f", **NOT_UNDERSTOOD[kind]}}, {"c": None})
    assert without_padding(row) == (row, 0)


STAY = {
    "a required parameter": (declared("f", {"a": {"type": "number"}}, required=["a"]), {"a": None}),
    "an open object": (declared("f", {"where": {"type": "object"}}), {"where": {"x": None}}),
    "an item of a list": (declared("f", {"l": {"type": "array"}}), {"l": [1, None, {"x": None}]}),
    "further parameters": (declared("f", {}, additionalProperties=True), {"x": None}),
    "text of JSON": (declared("f", {}), '{"x": null}'),
    "a default that is null": (declared("f", {"a": {"type": "string", "default": None}}), {}),
    "data of a schema": (
        declared("f", {"a": {"enum": [None], "const": None, "examples": [{"x": None}]}}),
        {},
    ),
}


@pytest.mark.parametrize("kind", STAY)
def test_a_null_that_an_author_wrote_stays(kind):
    row = row_of(*STAY[kind])
    assert without_padding(row) == (row, 0)


GO = {
    "beside a choice of what is required": (
        declared("f", {"a": STRING}, anyOf=[{"required": ["a"]}]),
        {"a": "x", "b": None},
        {"a": "x"},
    ),
    "a parameter that is not declared": (SUM, {"a": 1, "b": 2, "city": None}, {"a": 1, "b": 2}),
    "one that cannot be null": (WEATHER, {"city": None}, {}),
    "a tool without parameters": (
        {"type": "function", "function": {"name": "now", "parameters": None}},
        {"city": None},
        {},
    ),
    "within a declared object": (
        declared("f", {"where": {"properties": {"x": {"type": "number"}}}}),
        {"where": {"x": 1, "y": None}},
        {"where": {"x": 1}},
    ),
    "within declared items": (
        declared("f", {"l": {"items": {"properties": {"x": {"type": "number"}}}}}),
        {"l": [{"x": 1, "y": None}, {"x": None, "y": None}]},
        {"l": [{"x": 1}, {}]},
    ),
    "a tool declared in a text": (json.dumps([WEATHER]), {"city": "x", "a": None}, {"city": "x"}),
    "parameters declared flat": (
        {"name": "f", "parameters": {"x": {"type": "number"}, "y": None}},
        {"x": 1, "y": None},
        {"x": 1},
    ),
}


@pytest.mark.parametrize("kind", GO)
def test_a_null_that_is_padding_goes(kind):
    tool, arguments, expected = GO[kind]
    if isinstance(tool, str):
        row = {**row_of(WEATHER, arguments), "tools": tool}
    else:
        row = row_of({"function": tool.get("function", tool)}, arguments)
    cleaned, count = without_padding(row)
    assert cleaned["messages"][1]["tool_calls"][0]["function"]["arguments"] == expected
    assert count >= 1


@pytest.mark.parametrize(
    "column", ["messages", "conversations", "prompt", "completion", "chosen", "rejected"]
)
def test_calls_are_cleaned_in_every_column_of_messages(column):
    call = called("get_weather", {"city": "Oslo", "a": None})
    expected = called("get_weather", {"city": "Oslo"})
    declares = {"role": "system", "content": "", "tools": [WEATHER]}
    for given, wanted in (([call], [expected]), (call, expected)):
        cleaned, count = without_padding({"tools": [WEATHER], column: given})
        assert cleaned[column] == wanted and count == 1
    cleaned, count = without_padding({column: [declares, call]})
    assert cleaned[column] == [declares, expected] and count == 1


def test_calls_of_the_built_in_tools_lose_every_null():
    message = called("browser.search", {"query": "x", "city": None, "topn": None})
    cleaned, count = without_padding({"builtin_tools": ["browser"], "messages": [message]})
    (call,) = cleaned["messages"][0]["tool_calls"]
    assert call["function"]["arguments"] == {"query": "x"} and count == 2


def test_declarations_lose_what_no_schema_has_and_defaults_where_that_shows_padding():
    padded = {"type": "string", "default": None, "enum": None, "items": {"type": None, "x": None}}
    nothing = {"type": None, "default": None}
    row = {"functions": [{"name": "f", "parameters": {"properties": {"a": padded, "b": nothing}}}]}
    cleaned, count = without_padding(row)
    assert cleaned["functions"][0]["parameters"] == {
        "properties": {"a": {"type": "string", "items": {}}}
    }
    assert count == 5
    names = {"properties": {"default": {"type": "string"}, "const": None}}
    row = {"tools": json.dumps([{"name": "f", "parameters": names}])}
    cleaned, count = without_padding(row)
    assert cleaned["tools"][0]["parameters"] == {"properties": {"default": {"type": "string"}}}


def test_other_places_of_declarations_and_calls():
    schema = {"properties": {"a": {"type": "string"}, "b": None}}
    tool = {"name": "f", "parameters": schema}
    message = {"role": "assistant", "function_call": {"name": "f", "arguments": {"b": None}}}
    row = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
        "tools": [tool],
        "completion": [message, {"content": "x", "function_call": {"name": None}}],
        "messages": [
            {
                "role": "developer",
                "content": [{"type": "developer_content", "tools": {"n": {"tools": [tool]}}}],
            }
        ],
    }
    cleaned, count = without_padding(row)
    wanted = {"properties": {"a": {"type": "string"}}}
    assert cleaned["response_format"]["json_schema"]["schema"] == wanted
    assert cleaned["completion"][0]["function_call"]["arguments"] == {}
    assert cleaned["completion"][1] == {"content": "x"}
    block = cleaned["messages"][0]["content"][0]
    assert block["tools"]["n"]["tools"][0]["parameters"] == wanted
    assert count == 5


@pytest.mark.parametrize(
    "row",
    [
        {"tools": [None, 3, {"function": 3}, {"name": 3, "parameters": 3}], "messages": [3]},
        {"tools": "null", "messages": [{"tool_calls": [3, {"function": 3}, {"function": {}}]}]},
        {"tools": "[null", "messages": [{"function_call": 3, "content": [3, {"tools": {"a": 3}}]}]},
        {"response_format": {"json_schema": {"schema": 3}}, "messages": 3},
        {"tools": [{"name": "f", "parameters": {"properties": 3, "required": 3}}]},
    ],
)
def test_what_is_not_as_expected_is_left_to_its_reader(row):
    cleaned, count = without_padding(row)
    assert count == 0 and cleaned == row


def test_a_schema_nested_without_end_is_left_to_its_reader():
    schema = {}
    for _ in range(5000):
        schema = {"items": schema}
    row = {"tools": [{"name": "f", "parameters": schema}]}
    assert without_padding(row)[1] == 0
