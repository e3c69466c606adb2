"""Rows for a policy classifier: no policy, no readable label, one label for all are told."""

import json

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.harmony.dataset.counts import RowCounts
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.dataset.statistics import data_statistics
from gptoss_tune.recipe import DataSection

WORDS = {"kind": "policy", "labels": ["SAFE", "BAD"], "positive": "BAD"}


def judged(number, final, *, policy="spam", text="# Spam\nAnswer 0 or 1.", **keys):
    system = [] if text is None else [{"role": "system", "content": text}]
    said = {"role": "assistant", "content": final, "thinking": f"Rule {number}."}
    asked = {"role": "user", "content": f"Message {number}."}
    return {"messages": [*system, asked, said], "policy": policy, **keys}


def balanced(**keys):
    return [judged(n, f'{{"violation": {n % 2}}}', answer=str(n % 2), **keys) for n in range(12)]


@pytest.fixture
def warnings(write_jsonl, vocabulary):
    def told(rows):
        data = DataSection.model_validate({"train": write_jsonl(rows)})
        return data_statistics(data, vocabulary, seed=0).warnings()

    return told


def test_a_sound_set_is_told_nothing_and_its_keys_are_known(warnings):
    assert warnings(balanced(grader="policy")) == []
    words = [
        judged(n, ("SAFE", "BAD")[n % 2], grader=WORDS, answer=("SAFE", "BAD")[n % 2])
        for n in range(12)
    ]
    assert warnings(words) == []


def test_keys_of_grading_are_known_only_where_a_row_is_graded(warnings):
    row = balanced()[0]
    del row["policy"]
    (told,) = warnings([row])
    assert "the key 'answer' of a row is not read" in told
    (told,) = warnings([row | {"policy": "p", "polcy": "q"}])
    assert "'polcy' of a row is not read; did you mean 'policy'?" in told


def test_one_label_for_all_rows_of_a_policy_is_told_with_its_count(warnings):
    fine = [judged(n, "0", policy="care", answer="0") for n in range(20, 31)]
    (told,) = warnings([*balanced(), *fine])
    assert "all 11 rows of the policy 'care' have the label '0'" in told
    assert warnings([*balanced(), *fine[:9]]) == []
    other = judged(40, "1", policy="care", answer="1")
    assert warnings([*balanced(), *fine, other]) == []
    # Rationales differ, the label does not: what all answers have in common is looked at.
    texts = [judged(n, json.dumps({"violation": 1, "rationale": f"r{n}"})) for n in range(12)]
    assert any("have the label '1'" in line for line in warnings(texts))


@pytest.mark.parametrize("text", [None, " "])
def test_rows_without_the_text_of_their_policy_are_told(warnings, text):
    rows = balanced()
    rows[3:5] = [judged(n, "1", text=text, answer="1") for n in (3, 4)]
    (told,) = warnings(rows)
    assert "2 times: a row names a policy, and no system message holds its text" in told
    assert "(lines 4, 5)" in told or "first lines 4, 5" in told


def test_answers_whose_label_cannot_be_read_are_told(warnings):
    rows = balanced()
    rows[2] = judged(2, "Answer: 0", answer="0")
    rows[7] = judged(7, "```json\n{}\n```", answer="1")
    (told,) = warnings(rows)
    assert "2 times: the answer holds no label that the grader policy reads" in told
    assert "answer with 0 or 1, or with a JSON object that has it under 'violation'" in told
    (told,) = warnings([*balanced(), judged(50, "1", grader=WORDS)])
    assert "answer with SAFE or BAD" in told


def test_a_label_that_the_row_contradicts_is_told(warnings):
    rows = balanced()
    rows[0]["answer"] = "1"
    (told,) = warnings(rows)
    assert "the label of the answer is another than the row's key answer says" in told


@pytest.mark.parametrize("answer", ["2", "VIOLATION", 2, ["1"]])
def test_an_answer_that_is_no_label_is_told(warnings, answer):
    rows = balanced()
    rows[1]["answer"] = answer
    (told,) = warnings(rows)
    assert "the row's key answer is no label of its grader" in told
    assert "write 0 or 1 there" in told


def test_a_column_that_is_the_answer_itself_is_no_wrong_label(warnings):
    text = {"system": "# Spam", "policy": "spam", "reasoning_effort": "low"}
    rows = [
        {**text, "prompt": f"Message {n}.", "answer": f'{{"violation": {n % 2}}}'}
        for n in range(12)
    ]
    assert warnings(rows) == []


def test_a_grader_that_cannot_be_used_is_told_and_the_row_trained_on(write_jsonl, vocabulary):
    path = write_jsonl([*balanced(), judged(99, "x", grader={"kind": "policy", "labels": ["x"]})])
    data = DataSection.model_validate({"train": path})
    (told,) = data_statistics(data, vocabulary, seed=0).warnings()
    assert "settings that cannot be used" in told
    assert len(load_dataset(data, split="train", vocabulary=vocabulary)) == 13


def test_counts_of_labels_survive_their_file_and_are_added_up():
    one = RowCounts(labels={"a": {"0": 2}})
    two = RowCounts.from_json(
        json.dumps(RowCounts(labels={"a": {"1": 1}, "b": {"1": 3}}).to_json())
    )
    total = RowCounts()
    total.add(one)
    total.add(two)
    assert total.labels == {"a": {"0": 2, "1": 1}, "b": {"1": 3}}
    assert "labels" not in RowCounts().to_json()


def test_strict_fails_on_them(write_jsonl, tmp_path):
    path = write_jsonl([judged(n, "0", answer="0") for n in range(12)])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {{name_or_path: base}}\ndata: {{train: {path}}}\n"
        "train: {output_dir: run, max_steps: 1}\n"
    )
    told = CliRunner().invoke(app, ["check-data", str(recipe), "--strict"])
    assert told.exit_code == 2 and "have the label '0'" in " ".join(told.output.split())
