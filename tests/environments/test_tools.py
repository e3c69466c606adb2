"""Arguments of a call against their schema, and what a tool gives as text."""

import pytest

from gptoss_tune.environments.tools import as_text, check_arguments, check_schema
from gptoss_tune.errors import DataError

SCHEMA = {
    "type": "object",
    "properties": {
        "item": {"type": "string", "enum": ["pear", "plum"]},
        "count": {"type": "integer", "minimum": 1},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["item"],
}


@pytest.mark.parametrize(
    "text",
    ['{"item": "pear"}', '{"item": "plum", "count": 2}', ' {"item":"pear","notes":["a"]} '],
)
def test_arguments_that_fit(text):
    checked = check_arguments(text, SCHEMA, "price")
    assert checked.mistake is None and checked.arguments["item"] in ("pear", "plum")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "are not JSON"),
        ("item=pear", "are not JSON"),
        ('{"item": "pear"', "are not JSON"),
        ('{"item": "pear"} and more', "are not JSON"),
        ('{"item": "pear", "item": "plum"}', "are not JSON"),
        ('{"item": NaN}', "are not JSON"),
        ('["pear"]', "but no object"),
        ('"pear"', "but no object"),
        ("{}", "'item' is a required property"),
        ('{"item": "apple"}', "is not one of"),
        ('{"item": 3}', "is not of type 'string'"),
        ('{"item": "pear", "count": "2"}', "is not of type 'integer'"),
        ('{"item": "pear", "count": 0}', "less than the minimum"),
        ('{"item": "pear", "notes": [1]}', "is not of type 'string'"),
        ('{"item": "pear", "colour": "red"}', "price takes no argument 'colour'"),
        ('{"item": "' + "x" * 100_001 + '"}', "over 100,000 characters"),
        ("[" * 100_000, "are not JSON"),
    ],
)
def test_each_kind_of_malformed_arguments_is_the_models_mistake(text, said):
    checked = check_arguments(text, SCHEMA, "price")
    assert checked.mistake is not None and said in checked.mistake
    assert checked.by_model and checked.arguments == {}


def test_a_tool_without_parameters_takes_an_empty_object_alone():
    assert check_arguments("{}", None, "now").mistake is None
    assert "takes no argument 'zone'" in (check_arguments('{"zone": 1}', None, "now").mistake or "")


def test_other_arguments_are_taken_where_the_schema_says_so():
    open_ended = {**SCHEMA, "additionalProperties": True}
    assert check_arguments('{"item": "pear", "colour": "red"}', open_ended, "price").mistake is None


def test_a_schema_that_cannot_be_checked_is_refused():
    for schema, said in (
        ({"type": "nonsense"}, "cannot be used"),
        ({"$ref": "https://example.com/schema.json"}, "nothing is fetched"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "does not hold"),
    ):
        with pytest.raises(DataError, match=f"^rows.jsonl:1: .*'price'.*{said}"):
            check_schema(schema, "rows.jsonl:1", "price")


def test_results_become_text():
    assert as_text("plain") == "plain"
    assert as_text({"a": [1, None, "é"]}) == '{"a": [1, null, "é"]}'
    assert as_text(3) == "3"
    assert as_text("half \ud800 pair") == "half ? pair"
    for value in (object(), {1, 2}, b"bytes", "x" * 100_001):
        with pytest.raises(ValueError, match=r"it returned|its result has"):
            as_text(value)
