"""A suite file: what it means, and every mistake in it with its place."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gptoss_tune.benchmark.suites.open import open_suite
from gptoss_tune.benchmark.suites.read import read_suite_file
from gptoss_tune.errors import DataError, RecipeError
from gptoss_tune.grading.answer import Given


def passes(question, final):
    return question.grader.judge(Given(final), 1.0).passed


def text(vocabulary, question):
    return vocabulary.encoding.decode(list(question.prompt_ids))


def test_a_suite_says_how_its_tasks_are_asked(write_suite, write_rows, renderer, vocabulary):
    write_rows(
        "tasks.jsonl", {"prompt": "2 + 2?", "answer": "4"}, {"prompt": "3 * 3?", "answer": "9"}
    )
    path = write_suite(
        "tasks: tasks.jsonl\ngrader: number\ninstructions: Digits only.\n"
        "reasoning_effort: [low, high]\nmax_new_tokens: 77\ntemperature: 0.5\n"
        "top_p: 0.9\nsamples: 3\n"
    )
    suite = open_suite(path, renderer)
    assert (suite.name, suite.samples, suite.licence) == ("mine", 3, "Apache-2.0")
    assert suite.asking.max_new_tokens == 77 and suite.asking.top_p == 0.9
    assert suite.asking.temperature == 0.5
    assert [q.effort for q in suite.questions] == ["low", "high"] * 2
    assert "Digits only." in text(vocabulary, suite.questions[0])
    assert passes(suite.questions[2], "It is 9.0") and not passes(suite.questions[2], "It is 8")
    assert [q.source.rpartition("/")[2] for q in suite.questions[::2]] == [
        "tasks.jsonl:1",
        "tasks.jsonl:2",
    ]


def test_a_rows_own_grader_effort_and_instructions_stay(
    write_suite, write_rows, renderer, vocabulary
):
    own = {"prompt": "Hi?", "pattern": "(?i)hello", "grader": "pattern", "reasoning_effort": "high"}
    write_rows("tasks.jsonl", {**own, "system": "Be kind."})
    path = write_suite("tasks: tasks.jsonl\ngrader: number\ninstructions: Be brief.\n")
    (question,) = open_suite(path, renderer, efforts=["low"]).questions
    assert question.effort == "high" and passes(question, "hello there")
    assert "Be brief.\n\nBe kind." in text(vocabulary, question)


def test_a_bare_file_of_tasks_is_a_suite(write_rows, renderer):
    path = write_rows("My Tasks.jsonl", {"prompt": "2 + 2?", "answer": "4"})
    suite = open_suite(path, renderer)
    assert suite.name == "my-tasks" and passes(suite.questions[0], "4")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_columns_map_any_file(write_suite, tmp_path, renderer, suffix):
    rows = [
        {"frage": "7 * 8?", "loesung": "56", "nr": 1},
        {"frage": "6 * 6?", "loesung": "36", "nr": 2},
    ]
    path = tmp_path / f"set.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "json":
        path.write_text(json.dumps(rows))
    elif suffix == "csv":
        path.write_text(
            "frage,loesung,nr\n" + "".join(f"{r['frage']},{r['loesung']},{r['nr']}\n" for r in rows)
        )
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    suite = open_suite(
        write_suite(
            f"tasks:\n  - path: set.{suffix}\n    columns:\n"
            "      prompt: 'Task {{ nr }}: {{ frage }}'\n      answer: '{{ loesung }}'\n"
        ),
        renderer,
    )
    assert suite.questions[1].messages[-1]["content"] == "Task 2: 6 * 6?"
    assert passes(suite.questions[1], "36") and not passes(suite.questions[1], "56")


def test_a_path_that_leads_nowhere_is_told_as_the_suite_means_it(write_suite, write_rows, renderer):
    write_rows("capitals.jsonl", {"prompt": "2 + 2?", "answer": "4"})
    path = write_suite("tasks: capitals2.jsonl\n")
    with pytest.raises(DataError, match=r"capitals2\.jsonl: no such file") as error:
        open_suite(path, renderer)
    told = str(error.value)
    assert "relative to the suite's folder" in told and "current directory" not in told
    assert "did you mean 'capitals.jsonl'?" in told


def test_rows_of_other_columns_are_told_of_the_key_columns(write_suite, write_rows, renderer):
    write_rows("set.jsonl", {"frage": "7 * 8?", "loesung": "56"})
    with pytest.raises(DataError, match=r"set.jsonl:1: no known columns .got 'frage'") as error:
        open_suite(write_suite("tasks: set.jsonl\n"), renderer)
    assert "'columns' beside the path" in str(error.value)
    assert "no templates" not in str(error.value)


def test_a_template_that_ends_in_tojson_gives_graders_a_structure(
    write_suite, write_rows, renderer
):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    write_rows(
        "set.jsonl",
        {"q": "Call f with 1.", "want": [{"name": "f", "arguments": {"a": 1}}], "fns": [tool]},
    )
    path = write_suite(
        "grader: calls\ntasks:\n  path: set.jsonl\n  columns:\n    prompt: '{{ q }}'\n"
        "    tools: '{{ fns | tojson }}'\n    calls: '{{ want | tojson }}'\n"
    )
    (question,) = open_suite(path, renderer).questions
    assert question.grader.expected == "f(a=1)"


def test_a_list_of_accepted_answers_is_written_with_tojson(write_suite, write_rows, renderer):
    write_rows("set.jsonl", {"q": "Where?", "right": ["Oslo", "in Oslo"], "how": "exact"})
    path = write_suite(
        "tasks:\n  path: set.jsonl\n  columns:\n    prompt: '{{ q }}'\n"
        "    answer: '{{ right | tojson }}'\n    grader: '{{ how }}'\n"
    )
    (question,) = open_suite(path, renderer).questions
    assert (
        passes(question, "Oslo.") and passes(question, "In Oslo") and not passes(question, "Rome")
    )


def test_limits(write_suite, write_rows, renderer):
    write_rows("a.jsonl", *({"prompt": f"{n}?", "answer": str(n)} for n in range(5)))
    write_rows("b.jsonl", *({"prompt": f"{n}!", "answer": str(n)} for n in range(5)))
    path = write_suite("tasks: [{path: a.jsonl, limit: 2}, b.jsonl]\nlimit: 4\n")
    asked = [q.messages[-1]["content"] for q in open_suite(path, renderer).questions]
    assert asked == ["0?", "1?", "0!", "1!"]
    assert len(open_suite(path, renderer, limit=1).questions) == 1


def test_every_mistake_has_its_place(write_suite):
    path = write_suite(
        "tasks:\n  - path: x.jsonl\n    colums: {prompt: a}\n    limit: 0\n"
        "grader: [1]\nmax_new_tokens: many\nsamples: 2\ntemprature: 1\n"
    )
    with pytest.raises(RecipeError) as caught:
        read_suite_file(path)
    told = str(caught.value).splitlines()[1:]
    assert [line.strip().removeprefix(path).split(": ")[0] for line in told] == [
        ":7:5", ":8:12", ":9:9", ":10:17", ":12:1",
    ]  # fmt: skip
    assert "did you mean columns?" in told[0] and "did you mean temperature?" in told[4]
    assert "a whole number from 1 to 65536" in told[3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("samples: 1\n", "either tasks or needles"),
        ("tasks: a.jsonl\nneedles: {lengths: [512]}\n", "either tasks or needles"),
        ("tasks: a.jsonl\nsamples: 4\n", "temperature above 0"),
        ("tasks: a.jsonl\ntasks: b.jsonl\n", "the key a second time"),
        ("tasks: [a.jsonl\n", "broken YAML"),
        ("tasks: https://example.org/a.jsonl\n", "addresses are not read"),
        ("needles: {lengths: [512], depths: [1.5]}\n", "needles.depths[0]"),
        ("tasks: {path: a.jsonl, columns: {anser: '{{ a }}'}}\n", "did you mean answer?"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(write_suite, text, words):
    path = write_suite(text)
    with pytest.raises(RecipeError) as caught:
        read_suite_file(path)
    assert words in str(caught.value) and f"{path}:" in str(caught.value)


def test_what_a_suite_has_to_say_is_asked_for(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("tasks: a.jsonl\n")
    with pytest.raises(RecipeError) as caught:
        read_suite_file(str(path))
    for key in ("name", "description", "licence", "source"):
        assert f"{key}: got nothing, expected" in str(caught.value)


def test_rows_without_a_grader_are_all_named(write_suite, write_rows, renderer):
    write_rows("t.jsonl", {"prompt": "a?"}, {"prompt": "b?", "answer": "b"}, {"prompt": "c?"})
    with pytest.raises(DataError) as caught:
        open_suite(write_suite("tasks: t.jsonl\n"), renderer)
    assert "t.jsonl:1: nothing grades" in str(caught.value)
    assert "t.jsonl:3: nothing grades" in str(caught.value)
    assert "t.jsonl:2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [("mats", "did you mean maths"), ("nothing-like-it", "no such suite"), ("no.jsonl", "no such")],
)
def test_an_unknown_suite_is_refused(renderer, name, words):
    with pytest.raises(RecipeError, match=words):
        open_suite(name, renderer)


def test_opening_a_suite_needs_no_torch():
    code = (
        "import sys; from gptoss_tune.benchmark.suites.of_recipe import suites_of; "
        "import gptoss_tune.benchmark.contamination; "
        "heavy = {'torch', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
