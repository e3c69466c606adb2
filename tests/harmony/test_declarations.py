"""Parameters in the spellings people have: translated where they mean one thing, else refused."""

import copy
import json

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.declarations import read_parameters
from gptoss_tune.harmony.formats.registry import read_row

STRING = {"type": "string"}
CITY = {"type": "object", "properties": {"city": STRING}}
REQUIRED = {**CITY, "required": ["city"]}

SPELLINGS = {
    "type dict": ({**CITY, "type": "dict"}, CITY),
    "type in capitals": ({"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}, CITY),
    "no type": ({"properties": {"city": STRING}}, CITY),
    "flat map": ({"city": {"type": "str"}}, REQUIRED),
    "flat map of types": ({"city": "string"}, REQUIRED),
    "flat map, optional": ({"city": {"type": "str, optional"}}, {**CITY, "required": []}),
    "flat map, default": (
        {"city": {"type": "str", "default": "Rome"}},
        {"type": "object", "properties": {"city": {**STRING, "default": "Rome"}}, "required": []},
    ),
    "flat map that says required": (
        {"city": {"type": "str", "required": True}, "day": {"type": "str", "required": False}},
        {"type": "object", "properties": {"city": STRING, "day": STRING}, "required": ["city"]},
    ),
    "flat map beside required": ({"city": STRING, "required": ["city"]}, REQUIRED),
    "flat map of types beside required": ({"city": "str", "required": '["city"]'}, REQUIRED),
    "flat map that takes no others": (
        {"city": STRING, "required": [], "additionalProperties": False},
        {**CITY, "required": [], "additionalProperties": False},
    ),
    "flat map with a description": (
        {"description": "Where.", "city": STRING, "required": ["city"]},
        {**REQUIRED, "description": "Where."},
    ),
    "a description that takes no others": (
        {"description": "Where.", "additionalProperties": False},
        {"description": "Where.", "additionalProperties": False},
    ),
    "a parameter named required": (
        {"city": "str", "required": "bool"},
        {
            "type": "object",
            "properties": {"city": STRING, "required": {"type": "boolean"}},
            "required": ["city", "required"],
        },
    ),
    "a parameter named type": (
        {"type": {"type": "str", "default": "a"}},
        {"type": "object", "properties": {"type": {**STRING, "default": "a"}}, "required": []},
    ),
    "properties as text": ({"type": "object", "properties": '{"city": {"type": "string"}}'}, CITY),
    "properties as a list": (
        {"type": "object", "properties": [{"name": "city", "type": "string", "required": True}]},
        REQUIRED,
    ),
    "parameters as a list": ([{"name": "city", "type": "string"}], CITY),
    "parameters as text": ('{"type": "object", "properties": {"city": {"type": "string"}}}', CITY),
    "required as text": ({**CITY, "required": '["city"]'}, REQUIRED),
    "a sound schema": (REQUIRED, REQUIRED),
    "nothing": ({}, None),
    "empty text": ("", None),
    "a description alone": ({"description": "Takes nothing."}, None),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_known_spelling_becomes_a_schema_of_type_object(name):
    spelled, schema = SPELLINGS[name]
    assert read_parameters(spelled, "row:1", "parameters") == schema


TYPES = {
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "list": {"type": "array"},
    "List[int]": {"type": "array", "items": {"type": "integer"}},
    "list[list[str]]": {"type": "array", "items": {"type": "array", "items": STRING}},
    "Tuple[int, int]": {"type": "array", "items": {"type": "integer"}},
    "Dict[str, int]": {"type": "object"},
    "Optional[str]": STRING,
    "Union[str, int]": {"type": ["string", "integer"]},
    "str | None": STRING,
    "Literal['a', 'b']": {**STRING, "enum": ["a", "b"]},
    "Literal['a, b', \"it's\"]": {**STRING, "enum": ["a, b", "it's"]},
    "Literal[1, 2]": {"type": "integer", "enum": [1, 2]},
    "Literal[True]": {"type": "boolean", "enum": [True]},
    "Optional[Literal['a', None]]": {**STRING, "enum": ["a"]},
    "any": {},
}


@pytest.mark.parametrize("said", TYPES)
def test_a_type_as_programs_write_it_becomes_json_schema_s(said):
    schema = read_parameters({"a": {"type": said, "default": 1}}, "row:1", "parameters")
    assert schema is not None
    assert schema["properties"]["a"] == {**TYPES[said], "default": 1}


@pytest.mark.parametrize(
    "parameters",
    [
        {**CITY, "properties": {"city": {**STRING, "required": True}}, "required": []},
        {"city": {**STRING, "required": True}, "day": STRING, "required": ["day"]},
    ],
)
def test_the_row_of_the_user_is_not_changed(parameters):
    before = copy.deepcopy(parameters)
    schema = read_parameters(parameters, "row:1", "parameters")
    assert schema is not None and "city" in schema["required"]
    assert parameters == before


REFUSED = {
    "a type that is none": ({"a": {"type": "Frobnicator"}}, "a.type is 'Frobnicator'"),
    "literals of two types": ({"a": {"type": "Literal[1, 'b']"}}, "type is \"Literal[1, 'b']\""),
    "literals that are none": ({"a": {"type": "Literal[red]"}}, "a.type is 'Literal[red]'"),
    "literals that are lists": ({"a": {"type": "Literal[[1]]"}}, "a.type is 'Literal[[1]]'"),
    "no literals": ({"a": {"type": "Literal[]"}}, "a.type is 'Literal[]'"),
    "arguments that are no object": ({"type": "string"}, "the arguments of a call are an object"),
    "properties without names": ({"type": "object", "properties": [STRING]}, "without a name"),
    "properties as a number": ({"type": "object", "properties": 3}, "properties is a number"),
    "a schema that is a number": ({"type": "object", "properties": {"a": 3}}, "properties.a is 3"),
    "items that are no schema": (
        {"type": "object", "properties": {"a": {"type": "array", "items": "what"}}},
        "a.items is 'what'",
    ),
    "text that is no JSON": ("{city}", "parameters is not JSON"),
    "required that is no list": ({**CITY, "required": 3}, "required is 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_schema_is_refused(name):
    spelled, reason = REFUSED[name]
    with pytest.raises(DataError) as caught:
        read_parameters(spelled, "row:1", "parameters")
    assert reason in str(caught.value)


def row_of(declaration, arguments):
    function = {"name": "f", "arguments": arguments}
    return {
        "tools": [declaration],
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "tool_calls": [{"function": function}]},
        ],
    }


@pytest.mark.parametrize(
    "key", ["parameters", "inputSchema", "input_schema", "parametersJsonSchema"]
)
def test_a_schema_is_found_under_the_keys_of_other_interfaces(key, render, vocabulary):
    (example,) = render(row_of({"name": "f", key: CITY}, {"city": "Oslo"}))
    assert "city?: string" in vocabulary.decode(example.input_ids.tolist())


def test_two_schemas_of_one_tool_and_keys_that_are_not_read_are_told():
    with pytest.raises(DataError, match="has a schema in parameters and inputSchema"):
        read_row(row_of({"name": "f", "parameters": CITY, "inputSchema": CITY}, {}), "row:1")
    (warning,) = read_row(row_of({"name": "f", "params": CITY}, {}), "row:1").notes.warnings
    assert "the key 'params' of a tool's declaration is not read" in warning


@pytest.mark.parametrize(
    ("parameters", "arguments", "told"),
    [
        (CITY, {"city": "Oslo"}, False),
        (CITY, {"town": "Oslo"}, True),
        (None, {"city": "Oslo"}, True),
        ({"$ref": "#/$defs/x"}, {"city": "Oslo"}, True),
        ({"anyOf": [CITY]}, {"city": "Oslo"}, True),
        ({"type": ["object", "null"], "properties": {"city": STRING}}, {"city": "Oslo"}, False),
        ({"oneOf": [CITY, {"type": "object", "properties": {"zip": STRING}}]}, {"zip": "1"}, False),
        (None, {}, False),
    ],
)
def test_arguments_that_the_rendered_declaration_does_not_name_are_told(
    parameters, arguments, told, render, vocabulary
):
    row = row_of({"name": "f", "parameters": parameters}, arguments)
    warnings = [w for w in read_row(row, "row:1").notes.warnings if "does not name" in w]
    assert bool(warnings) is told
    (example,) = render(row)
    system_and_tools = vocabulary.decode(example.input_ids[: example.spans[1].end].tolist())
    assert all(f"{name}?" in system_and_tools for name in arguments) is not told


LOST = {
    "anyOf": {"anyOf": [STRING, {"type": "null"}]},
    "$ref": {"$ref": "#/$defs/x"},
    "allOf": {"allOf": [STRING]},
    "const": {"const": "x"},
    "an enum that is not of texts": {"type": "integer", "enum": [1, 2]},
    "a parameter without a type": {"description": "d"},
    "properties or items beside a list of types": {"type": ["array", "null"], "items": STRING},
    "additionalProperties": {"type": "object", "additionalProperties": STRING},
    "an array without one schema": {"type": "array"},
}


@pytest.mark.parametrize("name", LOST)
def test_what_the_library_loses_is_told(name):
    schema = {"type": "object", "properties": {"a": LOST[name]}}
    read = read_row(row_of({"name": "f", "parameters": schema}, {"a": 1}), "row:1")
    assert any(f"a declaration has {name}" in remark for remark in read.notes.remarks)
    assert not read.notes.warnings
    assert read.namespaces["functions"]["tools"][0]["parameters"] == schema


def test_what_the_library_renders_is_not_told():
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "enum": ["x"], "description": "d", "default": "x"},
            "b": {"type": ["string", "null"]},
            "c": {"type": "array", "items": {"type": "integer"}},
            "d": {"oneOf": [STRING, {"type": "number"}]},
        },
    }
    assert not read_row(
        row_of({"name": "f", "parameters": schema}, {"a": "x"}), "row:1"
    ).notes.remarks


def test_a_sound_schema_in_a_text_of_json_is_not_told_as_translated():
    for spelled, told in ((REQUIRED, False), ({"city": {"type": "str"}}, True)):
        for parameters in (spelled, json.dumps(spelled)):
            row = row_of({"name": "f", "parameters": parameters}, {"city": "Oslo"})
            remarks = read_row(row, "row:1").notes.remarks
            assert any("were no JSON schema" in remark for remark in remarks) is told
