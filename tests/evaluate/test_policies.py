"""Prompts with the grader policy: figures by policy in the report, the metrics and the tables."""

import io
import json

import pytest
from rich.console import Console

from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.evaluator import Evaluator, figures
from gptoss_tune.evaluate.parse import read_answer
from gptoss_tune.evaluate.tables import one_line, print_report
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe import DataSection, EvaluationSection

WORDS = {"kind": "policy", "labels": ["SAFE", "BAD"], "positive": "BAD"}
# Policy, grader, expected, and what the final channel holds; None: the answer stops before it.
ROWS = [
    ("spam", "policy", "1", '{"violation": 1, "policy_category": "S1"}'),
    ("spam", "policy", "1", "0"),
    ("spam", "policy", "0", "0"),
    ("spam", "policy", "0", None),
    ("food talk", WORDS, "BAD", "BAD"),
    ("food talk", WORDS, "SAFE", "It is SAFE."),
]


def question(policy, grader, answer):
    messages = [
        {"role": "system", "content": f"# Policy {policy}\nAnswer as told."},
        {"role": "user", "content": "Buy now!"},
    ]
    row = {"messages": messages, "policy": policy, "grader": grader, "answer": answer}
    return row


@pytest.fixture(scope="module")
def evaluator_of(tmp_path_factory):
    def make(*rows, **section):
        path = tmp_path_factory.mktemp("policies") / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        wanted = EvaluationSection(prompts=[str(path)], reasoning_effort=["low"], **section)
        data = DataSection(train=[{"path": "unread.jsonl"}])
        return Evaluator(wanted, data, load_vocabulary(), seed=0)

    return make


@pytest.fixture(scope="module")
def report(evaluator_of):
    evaluator = evaluator_of(*(question(*row[:3]) for row in ROWS))
    encoding = load_vocabulary().encoding
    answers = []
    for policy, _, expected, final in ROWS:
        # The analysis has the right label each time: it must not count.
        text = f"<|channel|>analysis<|message|>{policy}: {expected}<|end|>"
        if final is not None:
            text += f"<|start|>assistant<|channel|>final<|message|>{final}<|return|>"
        answers.append(read_answer(encoding.encode(text, allowed_special="all"), encoding))
    return evaluator._report(7, answers, None)


def test_the_report_has_the_figures_of_each_policy(report):
    spam, food = report["policies"]["by_policy"].values()
    assert list(report["policies"]["by_policy"]) == ["spam", "food talk"]
    assert (spam["rows"], spam["positives"], spam["abstained"]) == (4, 2, 1)
    assert (spam["precision"], spam["recall"], spam["specificity"]) == (1, 0.5, 0.5)
    assert (food["precision"], food["recall"], food["specificity"]) == (1, 1, 0)
    assert report["policies"]["macro"]["recall"] == 0.75
    assert report["graded"] == {"passed": 3, "total": 6}
    grades = [sample["grade"] for sample in report["samples"]]
    assert [grade.get("label") for grade in grades] == ["1", "0", "0", None, "BAD", None]
    assert grades[3]["note"] == "no label: there is no final message"
    json.dumps(report, allow_nan=False)


def test_the_metrics_have_them_by_safe_names(report):
    found = figures(report)
    assert found["eval_f1_spam"] == pytest.approx(2 / 3) and found["eval_f1_food_talk"] == 1
    assert found["eval_f1_macro"] == pytest.approx(5 / 6)
    assert found["eval_abstained_spam"] == 0.25 and found["eval_abstained_macro"] == 2 / 6
    assert found["eval_precision_spam"] == 1 and found["eval_specificity_food_talk"] == 0


def test_the_line_and_the_tables_say_them(report):
    assert "F1 0.833 (macro, 2 policies), 2 of 6 abstained" in one_line(report)
    console = Console(file=io.StringIO(), width=200)
    print_report(report, console)
    told = console.file.getvalue()
    for words in ("specificity", "food talk", "macro average", "1.00 (0.21-1.00)"):
        assert words in told


def test_an_evaluation_without_policies_says_nothing_of_them(evaluator_of):
    plain = evaluator_of({"prompt": "2 + 2?", "answer": "4"})
    encoding = load_vocabulary().encoding
    ids = encoding.encode("<|channel|>final<|message|>4<|return|>", allowed_special="all")
    found = plain._report(0, [read_answer(ids, encoding)], None)
    assert "policies" not in found and not any("f1" in name for name in figures(found))
    assert "F1" not in one_line(found)


def test_policies_of_one_name_are_refused_before_anything_is_asked(evaluator_of):
    with pytest.raises(DataError, match="one name in the metrics"):
        evaluator_of(question("a b", "policy", "1"), question("a-b", "policy", "1"))
