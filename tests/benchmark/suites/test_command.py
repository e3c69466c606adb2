"""``gptoss-tune suites``: the list, one suite, and what is said of a wrong one."""

import json

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import DataError, RecipeError


def run(*words):
    return CliRunner().invoke(app, ["suites", *words])


def test_the_list_names_every_suite_with_its_licence():
    done = run("--json")
    listed = {suite["name"]: suite for suite in json.loads(done.output)["suites"]}
    assert {"maths", "code", "tools", "instructions", "multilingual"} < set(listed)
    assert listed["maths"]["tasks"] == 65 and listed["long-context"]["tasks"] == 50
    table = run().output
    assert all(name in table for name in listed) and "Apache-2.0" in table


def test_one_suite_is_read_and_shown():
    about = json.loads(run("tools", "--json").output)
    assert about["questions"] == 39 and about["graders"] == {"calls": 39}
    assert about["first"]["source"].endswith("tools.jsonl:1")
    text = run("tools").output
    assert "39 questions" in text and "Tromsø" in text and "forecast(place=" in text


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ('{"prompt": "1?"}\n', DataError, "nothing grades the answer"),
        ('{"answer": "1"}\n', DataError, "no known columns"),
        (None, RecipeError, "no such suite"),
    ],
)
def test_a_wrong_suite_is_an_error_of_its_place(tmp_path, rows, error, words):
    path = tmp_path / "t.jsonl"
    if rows is not None:
        path.write_text(rows)
    done = run(str(path))
    assert isinstance(done.exception, error) and words in str(done.exception)
    assert str(path) in str(done.exception)
