"""What is seen in a data file: its shape, its size, what it teaches."""

import json

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.recipe import DataSection
from gptoss_tune.workflows.first_recipe import look
from gptoss_tune.workflows.first_recipe.columns import columns_for
from gptoss_tune.workflows.first_recipe.goals import likely_goal
from gptoss_tune.workflows.first_recipe.look import look_at


@pytest.mark.parametrize(
    ("shape", "rows", "goal"),
    [
        ("chat", "conversation", "chat"),
        ("thinking", "conversation", "reasoning"),
        ("tools", "conversation", "tools"),
        ("pairs", "pair", "preferences"),
        ("labels", "label", "preferences"),
        ("tagged", "conversation", "reasoning"),
        ("text", "conversation", "raw-text"),
        ("alpaca", "conversation", "chat"),
        ("odd", "conversation", "reasoning"),
    ],
)
def test_shape_and_goal(write, vocabulary, shape, rows, goal):
    found = look_at(write(shape), vocabulary)
    assert (found.rows, found.count, likely_goal(found)) == (rows, 40, goal)
    assert found.columns is None or shape == "odd"


def test_tokens_are_those_of_the_rendering(write, vocabulary, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write("thinking", 30)
    lengths = load_dataset(
        DataSection.model_validate({"train": path}), split="train", vocabulary=vocabulary
    )["length"]
    found = look_at(path, vocabulary)
    assert found.longest == max(lengths)
    assert found.tokens == sum(lengths)


def test_the_longest_row_is_found_at_the_end_of_a_file(write, vocabulary, tmp_path):
    path = write("chat", 900)
    with (tmp_path / path).open("a") as file:
        file.write(json.dumps({"messages": [
            {"role": "user", "content": "Count."},
            {"role": "assistant", "content": "one two " * 3000},
        ]}) + "\n")  # fmt: skip
    found = look_at(path, vocabulary)
    assert found.longest > 6000
    assert found.count == 901
    assert found.rendered < 901
    assert found.mean_tokens < 100  # the largest say nothing of the mean


def test_rows_beyond_the_first_are_estimated(write, vocabulary, monkeypatch):
    monkeypatch.setattr(look, "_MOST_ROWS", 500)
    found = look_at(write("chat", 1000), vocabulary)
    assert not found.counted
    assert 950 < found.count < 1050


def test_labels_are_counted(write, vocabulary):
    found = look_at(write("labels"), vocabulary)
    assert (found.good, found.bad) == (30, 10)


def test_some_rows_may_be_refused(write, vocabulary, tmp_path):
    path = write("chat", 10)
    with (tmp_path / path).open("a") as file:
        file.write('{"messages": []}\n')
    count, first = look_at(path, vocabulary).refused
    assert count == 1
    assert first.startswith(f"{path}:11: ")


def test_nothing_to_train_on_is_an_error(write, vocabulary, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"messages": 3}\n' * 3)
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    write("chat")
    for name, expected in (
        ("absent.jsonl", "no such file"),
        ("empty.jsonl", "empty.jsonl"),
        ("bad.jsonl", "bad.jsonl: none of the first 3 rows can be trained on; bad.jsonl:1: "),
        ("other.jsonl", "no known columns"),
    ):
        with pytest.raises(DataError, match=expected):
            look_at(name, vocabulary)


@pytest.mark.parametrize(
    ("row", "written"),
    [
        ({"user": "2+2?", "bot": "4"}, {"prompt": "{{ user }}", "completion": "{{ bot }}"}),
        (
            {"question": "2+2?", "chosen_response": "4", "rejected_response": "5"},
            {
                "prompt": "{{ question }}",
                "chosen": "{{ chosen_response }}",
                "rejected": "{{ rejected_response }}",
            },
        ),
        (
            {"instruction": "Add", "output": "4", "kto_tag": True, "system": ""},
            {
                "prompt": "{{ instruction }}",
                "completion": "{{ output }}",
                "label": "{{ kto_tag | tojson }}",
                "system": "{{ system | default('') }}",
            },
        ),
        ({"dialogue": [{"role": "user", "content": "a"}]}, {"messages": "{{ dialogue | tojson }}"}),
        ({"a": "1", "b": "2"}, None),
    ],
)  # fmt: skip
def test_columns_by_their_usual_names(row, written):
    assert columns_for(row) == written
