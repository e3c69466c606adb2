"""A suite of a policy classifier: figures by policy beside the score, in JSON, table and page."""

import io
import json

import pytest
from rich.console import Console

from gptoss_tune.benchmark.cache import AnswerCache
from gptoss_tune.benchmark.figures import figures_of
from gptoss_tune.benchmark.runner import measure
from gptoss_tune.benchmark.table import print_figures


def rows():
    for n in range(8):
        for policy in ("spam", "care"):
            messages = [
                {"role": "system", "content": f"# {policy}\nAnswer 0 or 1."},
                {"role": "user", "content": f"Message {n}."},
            ]
            row = {"messages": messages, "policy": policy, "grader": "policy"}
            yield row | {"answer": str(n % 2)}


@pytest.fixture
def figures(questions, suite, scripted, tmp_path):
    import dataclasses

    judged = dataclasses.replace(
        suite(1), name="judge", questions=tuple(questions(*rows(), name="judge.jsonl"))
    )
    # Rows are numbered from 1, spam and care in turn: the base says what was expected for spam and
    # nothing that is a label for care.
    base = scripted("base", lambda line, seed: line % 2 == 1)
    tuned = scripted("tuned")
    return figures_of(measure([judged, suite(2)], [base, tuned], AnswerCache(tmp_path / "cache")))


def test_each_subject_has_its_figures_by_policy(figures):
    judge, sums = figures["suites"]
    base = judge["subjects"]["base"]["policies"]["by_policy"]
    assert base["spam"]["f1"] == base["spam"]["specificity"] == 1
    assert base["care"]["f1"] == 0 and base["care"]["abstained"] == 8
    assert judge["subjects"]["base"]["policies"]["macro"]["recall"] == 0.5
    assert judge["subjects"]["tuned"]["policies"]["macro"]["f1"] == 1
    assert judge["subjects"]["base"]["score"] == 0.5
    assert sums["subjects"]["base"]["policies"] is None
    json.dumps(figures, allow_nan=False)


def test_the_table_shows_them_below(figures):
    console = Console(file=io.StringIO(), width=160)
    print_figures(figures, console)
    told = console.file.getvalue()
    assert told.count("macro average") == 2 and "judge, by policy" in told
    assert "sums, by policy" not in told
    line = next(line for line in told.splitlines() if "care" in line)
    assert line.split()[:4] == ["care", "8", "4", "0.00"], line
