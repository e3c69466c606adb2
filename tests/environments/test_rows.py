"""Results that a row holds for its tools."""

import pytest

from gptoss_tune.environments.rows import RowTools, UnknownCall, read_script
from gptoss_tune.errors import DataError

TOOLS = [{"name": "price", "parameters": {"type": "object", "properties": {"item": {}}}}]


def answers(results, **arguments):
    environment = RowTools()
    assert environment.reset({"tools": TOOLS, "tool_results": results}, 0) is None
    (tool,) = environment.tools()
    return tool.run(**arguments)


def test_the_first_entry_with_the_calls_arguments_answers():
    results = [
        {"name": "price", "arguments": {"item": "pear"}, "result": "3"},
        {"name": "price", "arguments": {"item": "plum", "n": 2}, "result": {"cents": 80}},
        {"name": "functions.price", "arguments": {"item": "plum"}, "result": "0.40"},
        {"name": "price", "arguments": {"item": "pear"}, "result": "never"},
        {
            "name": "price",
            "arguments": {"item": "Fig"},
            "match": {"item": {"ignore_case": True}},
            "result": "5",
        },
    ]
    assert answers(results, item="pear") == "3"
    assert answers(results, n=2.0, item="plum") == '{"cents": 80}'
    assert answers(results, item="plum") == "0.40"
    assert answers(results, item="fig") == "5"
    with pytest.raises(UnknownCall):
        answers(results, item="Pear")
    with pytest.raises(UnknownCall):
        answers(results)


def test_an_entry_without_arguments_answers_whatever_they_are():
    results = [{"name": "price", "result": "3"}]
    assert answers(results, item="anything") == "3"
    # One with none answers calls without any.
    with pytest.raises(UnknownCall):
        answers([{"name": "price", "arguments": {}, "result": "3"}], item="x")


def test_results_may_be_json_text_as_tables_have_it():
    assert (
        answers('[{"name": "price", "arguments": {"item": "a"}, "result": "1"}]', item="a") == "1"
    )


def test_a_row_without_results_has_nothing_that_answers():
    environment = RowTools()
    environment.reset({"tools": TOOLS}, 0)
    assert environment.tools() == []


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ("three", "tool_results is"),
        ({"name": "price"}, "tool_results is"),
        ([{"name": "price", "arguments": {}}], r"tool_results\[0\] is"),
        ([{"arguments": {}, "result": "1"}], r"tool_results\[0\].name"),
        ([{"name": "price", "arguments": [1], "result": "1"}], r"tool_results\[0\].arguments"),
        ([{"name": "price", "args": {}, "result": "1"}], "has the key 'args'"),
        ([{"name": "cost", "result": "1"}], r"\[0\] answers the tool 'cost'.*declared: price"),
        ([{"name": "price", "result": "x" * 100_001}], r"\[0\].result cannot be used"),
    ],
)
def test_what_answers_no_call_is_refused_by_file_and_line(results, said):
    with pytest.raises(DataError, match=f"^rows.jsonl:3: .*{said}"):
        read_script({"tool_results": results}, "rows.jsonl:3", declared=["price"])
