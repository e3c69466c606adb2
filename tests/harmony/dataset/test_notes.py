"""What check-data tells of rows that can be trained on, and advice that holds when followed."""

import json

import pytest
from typer.testing import CliRunner

from gptoss_tune.cli import app
from gptoss_tune.errors import DataError
from gptoss_tune.harmony.dataset.counts import MOST_KINDS, MOST_SENTENCES, RowCounts
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.dataset.statistics import data_statistics
from gptoss_tune.recipe import DataSection

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4", "thinking": "Two and two."}


def section(path, **settings):
    return DataSection.model_validate({"train": path, **settings})


def statistics(vocabulary, path, **settings):
    return data_statistics(section(path, **settings), vocabulary, seed=0)


@pytest.fixture
def check(tmp_path):
    """Run check-data on a file."""

    def run(path, *options, **data):
        recipe = tmp_path / "recipe.yaml"
        whole = {
            "model": {"name_or_path": "base"},
            "data": {"train": path, **data},
            "train": {"output_dir": "run", "max_steps": 1},
        }
        recipe.write_text(json.dumps(whole))
        return CliRunner().invoke(app, ["check-data", str(recipe), *options])

    return run


MISSPELLED = [
    {"messages": [USER, ANSWER]},
    {"messages": [{**USER, "content": "1?"}, {**ANSWER, "thinkng": "x"}]},
    {"messages": [{**USER, "content": "3?"}, {**ANSWER, "thinkng": "y"}], "tool": [{"name": "f"}]},
]


def test_unknown_keys_are_counted_by_source_and_fail_under_strict(check, write_jsonl):
    path = write_jsonl(MISSPELLED)
    result = check(path)
    assert result.exit_code == 0
    message = "the key 'thinkng' of a message of the assistant is not read; did you mean 'thinking'"
    assert f"train: {path}: 2 times: {message}? (lines 2, 3)" in result.output
    assert f"train: {path}: the key 'tool' of a row is not read; did you mean 'tools'?" in (
        result.output
    )
    assert check(path, "--strict").exit_code == 2
    assert check(write_jsonl(MISSPELLED[:1]), "--strict").exit_code == 0


def test_keys_that_the_recipe_names_pass_strict(check, write_jsonl):
    path = write_jsonl(MISSPELLED)
    assert check(path, "--strict", ignored_keys=["thinkng", "tool"]).exit_code == 0


def test_training_tells_what_is_lost(vocabulary, write_jsonl):
    data = section(write_jsonl(MISSPELLED))
    told: list[str] = []
    for _ in range(2):  # rendered, then read from the cache
        load_dataset(data, split="train", vocabulary=vocabulary, tell=told.append)
    assert len(told) == 4
    assert "'thinkng' of a message" in told[0] and told[:2] == told[2:]


def test_what_a_server_does_alike_is_told_and_passes_strict(check, write_jsonl):
    schema = {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}]}}}
    row = {"tools": [{"name": "f", "parameters": schema}], "messages": [USER, ANSWER]}
    result = check(write_jsonl([row]), "--strict")
    assert result.exit_code == 0
    assert "By the way" in result.output and "a declaration has anyOf" in result.output


def test_thoughts_in_the_text_fail_under_strict_until_they_are_split(check, write_jsonl):
    path = write_jsonl([{"prompt": "2+2?", "completion": "<think>Two.</think>4"}])
    assert "set data.thinking_tags to split" in check(path).output
    failed, passed = check(path, "--strict"), check(path, "--strict", thinking_tags="split")
    assert (failed.exit_code, passed.exit_code) == (2, 0)
    assert failed.output.endswith("Under --strict what is to know fails.\n")
    assert passed.output.endswith("All rows can be trained on.\n")


def test_chats_without_thoughts_at_medium_are_told_and_the_advice_holds(check, write_jsonl):
    rows = [{"messages": [USER, {"role": "assistant", "content": str(n)}]} for n in range(1)]
    path = write_jsonl(rows)
    result = check(path, "--strict")
    assert result.exit_code == 2
    assert "1 row of 1 without thoughts" in result.output
    assert check(path, "--strict", reasoning_effort="low").exit_code == 0
    named = write_jsonl([{**row, "reasoning_effort": "medium"} for row in rows])
    assert check(named, "--strict").exit_code == 0


def test_rows_without_thoughts_are_divided_between_the_splits(write_jsonl, vocabulary):
    plain = [
        {"messages": [{**USER, "content": f"{n}?"}, {"role": "assistant", "content": str(n)}] * 2}
        for n in range(16)
    ]
    thinking = [{"messages": [{**USER, "content": f"{n}!"}, ANSWER]} for n in range(4)]
    path = write_jsonl([*plain, *thinking])
    found = statistics(vocabulary, path, eval_fraction=0.4)
    splits = [split.report.counts for split in found.splits.values()]
    assert len(splits) == 2 and all(counts["without_thoughts"] for counts in splits)
    assert sum(counts["without_thoughts"] for counts in splits) == len(plain)
    assert all(counts["without_thoughts"] <= counts["rows"] for counts in splits)
    told = [line for line in found.warnings() if "without thoughts" in line]
    assert [line.split(" without")[0] for line in told] == [
        f"{name}: {path}: {counts['without_thoughts']} rows of {counts['rows']}"
        for name, counts in zip(found.splits, splits, strict=True)
    ]


def test_one_mistake_in_every_row_is_said_once_with_a_count(check, write_jsonl, vocabulary):
    path = write_jsonl([{"asked": f"Say {n}", "said": str(n)} for n in range(10)])
    result = check(path)
    assert result.exit_code == 2
    assert result.output.count("  rejected ") == 1
    assert result.output.count(f"  rejected {path}: no known columns") == 1
    assert ": 10 rows (first lines 1, 2, 3)\n" in result.output
    report = json.loads(check(path, "--json").stdout)["splits"]["train"]
    (mistake,) = report["mistakes"].values()
    assert mistake["rows"] == 10 and mistake["places"] == [f"{path}:{n}" for n in (1, 2, 3)]
    with pytest.raises(DataError) as caught:
        load_dataset(section(path), split="train", vocabulary=vocabulary)
    assert str(caught.value).count("no known columns") == 1
    assert "10 rows cannot be trained on" in str(caught.value)


def test_two_kinds_of_mistakes_are_two_lines():
    report = RowCounts()
    for line, said in enumerate(("x is 'b'; fix it", "x is 'c'; fix it", "y; no"), start=1):
        report.reject(f"a.jsonl:{line}: {said}", f"a.jsonl:{line}")
    assert list(map(str, report.mistakes.values())) == [
        "a.jsonl: x is 'b'; fix it: 2 rows (lines 1, 2)",
        "a.jsonl:3: y; no",
    ]


def test_a_mistake_of_several_files_names_each_first_place():
    both, other = RowCounts(), RowCounts()
    both.reject("a.parquet:7: x; fix it", "a.parquet:7")
    both.reject("a.parquet:9: x; fix it", "a.parquet:9")
    assert str(*both.mistakes.values()) == "a.parquet: x; fix it: 2 rows (rows 7, 9)"
    other.reject("b.jsonl:1: x; fix it", "b.jsonl:1")
    both.add(other)
    told = "x; fix it: 3 rows (a.parquet:7, a.parquet:9, b.jsonl:1)"
    assert str(*both.mistakes.values()) == told
    assert RowCounts.from_json(json.dumps(both.to_json())) == both


def test_kinds_of_mistakes_are_bounded():
    report = RowCounts()
    for line in range(MOST_KINDS + 50):
        report.reject(f"a.jsonl:{line}: {'x' * line}; fix it", f"a.jsonl:{line}")
    assert len(report.mistakes) == MOST_KINDS + 1
    assert str([*report.mistakes.values()][-1]).startswith("mistakes of further kinds")
    assert sum(mistake.rows for mistake in report.mistakes.values()) == MOST_KINDS + 50


ADVICE = {
    "content in no part": (
        {"messages": [{"role": "user", "content": ["q"]}, ANSWER]},
        "stands in no part",
        [
            {"messages": [{"role": "user", "content": "q"}, ANSWER]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]},
        ],
    ),
    "no conversation": (
        {"conversations": []},
        "conversations is an empty list; a row needs at least one question and its answer",
        [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}],
    ),
    "no messages": (
        {"messages": []},
        "messages is an empty list",
        [{"messages": [USER, ANSWER]}],
    ),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice_about_a_row_holds_when_followed(name, write_jsonl, vocabulary):
    bad, said, corrected = ADVICE[name]
    split = statistics(vocabulary, write_jsonl([bad])).splits["train"]
    assert said in split.report.rejected[0]
    for row in corrected:
        assert statistics(vocabulary, write_jsonl([row])).splits["train"].samples == 1


@pytest.mark.parametrize("content", [[{"temp": 3}], {"temp": 3}])
def test_a_result_that_is_no_text_is_asked_for_as_text(content, write_jsonl, vocabulary):
    def row(result):
        return {
            "tools": [{"name": "f"}],
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "content": result},
                ANSWER,
            ],
        }

    (message,) = statistics(vocabulary, write_jsonl([row(content)])).splits["train"].report.rejected
    assert "as" in message and "JSON" in message and "null" not in message
    corrected = write_jsonl([row(json.dumps(content))])
    assert statistics(vocabulary, corrected).splits["train"].samples == 1


def test_rows_that_are_all_too_long_are_told_so_and_the_length_is_right(write_jsonl, vocabulary):
    rows = [{"messages": [{"role": "user", "content": "word " * n}, ANSWER]} for n in (700, 600)]
    path = write_jsonl(rows)
    problem = statistics(vocabulary, path, max_length=512).splits["train"].problem
    assert problem is not None
    assert "2 samples over 512 tokens" in problem and "assistant reply" not in problem
    shortest = int(problem.split("the shortest of these has ")[1].split(" tokens")[0])
    assert statistics(vocabulary, path, max_length=shortest).splits["train"].samples == 1
    assert statistics(vocabulary, path, max_length=shortest - 1).splits["train"].samples == 0


def test_rows_that_are_far_too_long_are_to_be_split(write_jsonl, vocabulary):
    rows = [{"messages": [{"role": "user", "content": "word " * 2000}, ANSWER]}]
    problem = statistics(vocabulary, write_jsonl(rows), max_length=8).splits["train"].problem
    assert problem is not None and problem.endswith(
        "far longer than data.max_length: split the rows"
    )


def test_rows_with_nothing_to_train_are_told_so(write_jsonl, vocabulary):
    path = write_jsonl([{"messages": [USER, {**ANSWER, "weight": 0}]}])
    problem = statistics(vocabulary, path).splits["train"].problem
    assert problem is not None and "give messages, or their channels, a loss weight" in problem


def test_rows_whose_every_key_differs_do_not_fill_the_report(write_jsonl, vocabulary):
    rows = [{"messages": [USER, ANSWER], f"k{n}q{n}": 1} for n in range(MOST_SENTENCES + 50)]
    report = statistics(vocabulary, write_jsonl(rows)).splits["train"].report
    assert len(report.warnings) == MOST_SENTENCES + 1
    assert report.warnings.total() == len(rows)
    assert RowCounts.from_json(json.dumps(report.to_json())) == report
