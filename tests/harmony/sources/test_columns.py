"""Column templates: JSON as the row has it, null as empty text in every file format, bounds."""

import json
import time

import pytest

from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.harmony.formats.preference import read_preference
from gptoss_tune.harmony.sources.columns import ColumnTemplates
from gptoss_tune.harmony.sources.open import open_source
from gptoss_tune.recipe.data_schema import DataSource

CALL = {"name": "send", "arguments": {"to": "a", "body": "è < 5 & 'x'", "cc": None}}


def written(template, row, field="system"):
    return ColumnTemplates({field: template}).apply(row, "row:1").get(field)


def test_tojson_writes_what_the_row_holds_as_transformers_does():
    assert written("{{ a | tojson }}", {"a": CALL}) == json.dumps(CALL, ensure_ascii=False)
    assert written("{{ a | tojson(indent=2) }}", {"a": CALL}) == json.dumps(
        CALL, ensure_ascii=False, indent=2
    )
    assert written("{{ a | tojson(ensure_ascii=True) }}", {"a": "è"}) == '"\\u00e8"'


def test_tojson_keeps_the_order_of_calls_and_declarations():
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"to": {}, "body": {}}}}]
    messages = [{"role": "assistant", "tool_calls": [{"function": CALL}]}]
    templates = ColumnTemplates({"messages": "{{ m | tojson }}", "tools": "{{ t | tojson }}"})
    row = templates.apply({"m": messages, "t": tools}, "row:1")
    assert json.dumps(row) == json.dumps({"messages": messages, "tools": tools})


def test_tojson_writes_no_number_that_json_does_not_have():
    with pytest.raises(DataError, match="fails on this row"):
        written("{{ a | tojson }}", {"a": float("inf")})


NULLS = {
    "{{ x }}": None,
    "a{{ x }}": "a",
    "{{ x | upper }}b": "b",
    "{{ x | trim }}b": "b",
    "{{ x | int }}b": "b",
    "{{ x | round }}b": "b",
    "{{ x | length }}b": "b",
    "{{ x | default('d') }}": "d",
    "{{ x | d('d') }}": "d",
    "{{ [x, 'a'] | join(',') }}": ",a",
    "{{ x | tojson }}b": "nullb",
    "{% if x %}a{% else %}b{% endif %}": "b",
    "{{ x.y.z }}b": "b",
    "{{ inner.x }}b": "b",
    "{{ inner['gone'] }}b": "b",
    "{{ inner.gone.further }}b": "b",
    "{{ inner.items }}b": "b",
}


@pytest.mark.parametrize("template", NULLS)
def test_null_is_empty_text_whatever_is_done_to_it(template):
    assert written(template, {"x": None, "inner": {"x": None}}) == NULLS[template]


@pytest.mark.parametrize("answer", [None, "", "  "])
@pytest.mark.parametrize("field", ["prompt", "completion", "messages"])
def test_a_row_without_its_question_or_answer_is_refused(field, answer):
    template = "{{ a | tojson }}" if field == "messages" and answer is None else "{{ a }}"
    with pytest.raises(DataError, match=f"the template of '{field}' writes nothing on this row"):
        written(template, {"a": answer}, field)


@pytest.fixture
def write_rows(tmp_path, write_jsonl):
    """The same rows in a file of each format."""

    def write(suffix, rows):
        if suffix == "jsonl":
            return write_jsonl(rows)
        path = tmp_path / f"rows.{suffix}"
        if suffix == "json":
            path.write_text(json.dumps(rows))
        elif suffix == "csv":
            cells = [[row[key] or "" for key in rows[0]] for row in rows]
            path.write_text("\n".join(",".join(line) for line in [list(rows[0]), *cells]))
        else:
            import pyarrow as pa
            from pyarrow import parquet

            parquet.write_table(pa.Table.from_pylist(rows), path)
        return str(path)

    return write


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_null_is_the_same_in_every_file_format(suffix, write_rows):
    path = write_rows(
        suffix,
        [
            {"q": "3+3?", "ctx": None, "a": "6"},
            {"q": "4+4?", "ctx": "sum", "a": None},
            {"q": "5+5?", "ctx": "sum", "a": "10"},
        ],
    )
    columns = {"prompt": "{{ q }}{% if ctx %} {{ ctx }}{% endif %}", "completion": "{{ a }}"}
    source = DataSource.model_validate({"path": path, "columns": columns})
    first, second, third = (row for _, row in open_source(source).rows())
    assert first == {"prompt": "3+3?", "completion": "6"}
    assert "the template of 'completion' writes nothing" in str(second)
    assert third == {"prompt": "5+5? sum", "completion": "10"}


def test_a_column_that_no_row_has_is_an_error():
    rows = [("row:1", {"q": "a"}), ("row:2", {"q": "b"})]
    for _, row in ColumnTemplates({"prompt": "{{ q }}{{ p }}"}).rows(rows):
        assert "'p' is undefined" in str(row)


BOUNDED = [
    "{{ 1.5 | round(1000000000, 'ceil') }}",
    "{{ x | round(1000000000, 'ceil') }}",
    "{{ x | round(-1000000000, 'floor') }}",
    "{{ 15 | round(-1000000000) }}",
    "{{ x | round(precision=1000000000) }}",
    "{{ x | round('9') }}",
    "{{ long | trim(long) }}",
    "{{ x | tojson(indent=1000000000) }}",
    "{{ [x] | tojson(indent=long) }}",
]


@pytest.mark.parametrize("template", BOUNDED)
def test_a_filter_s_argument_is_bounded(template):
    start = time.monotonic()
    with pytest.raises(DataError, match="takes"):
        written(template, {"x": 1.5, "long": "a" * 100_000})
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("name", ["map", "format", "center", "replace", "xmltodict"])
def test_filters_that_make_much_of_little_are_not_there(name):
    with pytest.raises(RecipeError, match=f"no filter '{name}'"):
        ColumnTemplates({"prompt": f"{{{{ [1.5] | {name}('round', 1000000000) }}}}"})


def test_round_rounds():
    assert written("{{ x | round(1) }} {{ x | round(-1) | int }}", {"x": 15.26}) == "15.3 20"


TURNS = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def test_templates_write_a_pair_of_texts_or_of_messages():
    columns = {"prompt": "{{ q }}", "chosen": "{{ good }}", "rejected": "{{ bad | trim }}"}
    row = {"q": "2+2?", "good": "4", "bad": " 5 "}
    assert ColumnTemplates(columns).apply(row, "row:1") == {
        "prompt": "2+2?",
        "chosen": "4",
        "rejected": "5",
    }
    columns = {"chosen": "{{ good | tojson }}", "rejected": "{{ bad[1] | tojson }}\n"}
    written = ColumnTemplates({**columns, "prompt": "{{ good[:1] | tojson }}"}).apply(
        {"good": TURNS, "bad": TURNS}, "row:1"
    )
    pair = read_preference(written, "row:1")
    assert [message.text for message in pair.chosen.messages] == ["2+2?", "4"]
    assert pair.equal and pair.prompt_length == 1


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ a }}", str(TURNS)),
        ("{{ a | tojson }}", json.dumps(TURNS)),
        ("Say {{ a | tojson }}", f"Say {json.dumps(TURNS)}"),
        ("{{ text | tojson }}", '"quoted" [1]'),
        ("{{ text }}", '"quoted" [1]'),
        ("Say {{ text | tojson }}", 'Say "\\"quoted\\" [1]"'),
        ("{{ number | tojson }}", "7"),
    ],
)
def test_an_answer_as_json_is_the_text_or_the_messages_of_its_column(template, expected):
    row = {"a": TURNS, "text": '"quoted" [1]', "number": 7}
    assert written(template, row, "chosen") == expected


@pytest.mark.parametrize(
    ("template", "value", "label"),
    [
        ("{{ x | tojson }}", True, True),
        ("{{ x }}", False, False),
        ("{{ x }}", 1, 1),
        ("{{ x == 'good' }}", "good", True),
        ("{{ x == 'good' }}", "bad", False),
        ("{{ x >= 4 }}", 3, False),
    ],
)
def test_a_template_writes_a_label_as_a_table_holds_it_or_by_comparing(template, value, label):
    got = written(template, {"x": value}, "label")
    assert got == label and type(got) is type(label)


@pytest.mark.parametrize("field", ["chosen", "rejected", "label"])
@pytest.mark.parametrize("template", ["{{ x }}", "{{ x | tojson }}"])
def test_a_pair_without_an_answer_or_an_answer_without_its_label_is_refused(field, template):
    with pytest.raises(DataError, match=f"the template of '{field}' writes nothing on this row"):
        written(template, {"x": None}, field)


def test_a_label_of_other_words_is_not_guessed():
    with pytest.raises(DataError, match="the template of 'label' writes 'good', which is not JSON"):
        written("{{ x }}", {"x": "good"}, "label")
