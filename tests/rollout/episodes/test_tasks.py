"""Rows of a recipe's data as tasks: what is asked, what stays in the row, what is refused."""

import gzip
import json
from collections import Counter

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.recipe import DataSection
from gptoss_tune.rollout.tasks import read_tasks


@pytest.fixture
def write(tmp_path):
    """Return a function that writes rows into a file and gives its path."""

    def written(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        data = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return written


@pytest.fixture
def read(vocabulary):
    """Return a function that reads tasks of a data section."""

    def tasks(
        split="train", seed=3, graded=False, own_environment=False, counts=None, tell=None, **data
    ):
        section = DataSection.model_validate(data)
        return read_tasks(
            section,
            split,
            vocabulary=vocabulary,
            seed=seed,
            graded=graded,
            own_environment=own_environment,
            counts=counts,
            tell=tell or (lambda _: None),
        )

    return tasks


def chat(question, *after, **beside):
    return {"messages": [{"role": "user", "content": question}, *after], **beside}


ANSWER = {"role": "assistant", "content": "It is 4.", "thinking": "Add."}


def test_each_format_is_cut_back_to_its_last_question(write, read):
    rows = [
        chat("a", answer="4"),
        chat("b", ANSWER, answer="4"),
        chat("first", ANSWER, {"role": "user", "content": "c"}, ANSWER, answer="4"),
        {"prompt": "d", "answer": "4"},
        {"prompt": "e", "completion": "It is 4.", "pattern": "4"},
        {"conversations": [{"from": "human", "value": "f"}, {"from": "gpt", "value": "4"}]},
        {"question": "g", "answer": "4"},
        {"instruction": "h", "output": "4", "grader": {"kind": "number"}, "answer": "4"},
        {"instruction": "Do it.", "input": "i", "output": "4", "answer": "4"},
    ]
    tasks = read(train=write(rows))
    assert [task.conversation.messages[-1].text for task in tasks] == [*"abcdefgh", "Do it.\n\ni"]
    assert [task.conversation.messages[-1].header.role for task in tasks] == ["user"] * 9
    assert [len(task.conversation.messages) for task in tasks] == [1, 1, 4, 1, 1, 1, 1, 1, 1]
    assert [task.number for task in tasks] == list(range(9))
    assert [task.source.rsplit(":")[-1] for task in tasks] == [str(n) for n in range(1, 10)]
    assert [task.row for task in tasks] == rows
    assert {task.conversation.effort for task in tasks} == {"medium"}


def test_settings_of_rows_and_sources_are_those_of_training(write, read):
    tool = {"name": "old.name", "parameters": {"type": "object", "properties": {"x": {}}}}
    one = write(
        [chat("a", reasoning_effort="high"), chat("b", tools=[tool], answer="1")], "one.jsonl"
    )
    two = write([{"messages": [{"role": "bot", "content": "x"}]}], "folder/two.jsonl.gz")
    write([{"messages": [{"role": "human2", "content": "c"}]}], "folder/two.jsonl.gz")
    tasks = read(
        train=[one, {"path": str(two).rsplit("/", 1)[0], "reasoning_effort": "low", "weight": 2}],
        tool_names={"old.name": "new_name"},
        roles={"human2": "user"},
        reasoning_effort="medium",
    )
    assert [t.conversation.effort for t in tasks] == ["high", "medium", "low", "low"]
    assert [t.dataset for t in tasks] == [0, 0, 1, 1]
    assert [t.number for t in tasks] == [0, 1, 2, 3]
    assert tasks[1].conversation.recipients() == {"functions.new_name"}
    assert tasks[2].source.endswith("two.jsonl.gz:1")


def test_templates_write_what_is_asked_and_the_rows_columns_grade(write, read):
    path = write(
        [
            {"problem": "1 + 1?", "answer": "2", "level": 3},
            {"problem": "2 + 2?", "answer": "4", "level": 1},
        ]
    )
    tasks = read(
        train={"path": path, "columns": {"prompt": "Solve: {{ problem }}", "grader": "number"}},
        graded=True,
    )
    assert [t.conversation.messages[0].text for t in tasks] == ["Solve: 1 + 1?", "Solve: 2 + 2?"]
    assert tasks[0].row == {
        "problem": "1 + 1?",
        "answer": "2",
        "level": 3,
        "prompt": "Solve: 1 + 1?",
        "grader": "number",
    }


def test_all_mistakes_are_told_at_once_by_file_and_line(write, read):
    script = [{"name": "price", "result": "1"}]
    path = write(
        [
            chat("fine", answer="4"),
            chat("no way to be rewarded"),
            "{not json",
            chat("two graders", answer="4", pattern="4"),
            chat("bad grader", answer="4", grader="colour"),
            chat("undeclared", answer="4", tool_results=script),
            {"messages": [{"role": "assistant", "content": "asks nothing"}], "answer": "4"},
            chat("bad tool", tools=[{"name": "f", "parameters": {"$ref": "http://x"}}], answer="4"),
            {"chosen": "a", "rejected": "b", "prompt": "a pair", "answer": "4"},
        ]
    )
    with pytest.raises(DataError) as refused:
        read(train=path, graded=True)
    lines = str(refused.value).split("\n  ")
    assert lines[0].startswith("8 rows cannot be played; fix them, or set data.on_error to skip")
    for line, number, said in zip(
        lines[1:],
        range(2, 10),
        (
            "neither answer, pattern nor grader",
            "is not JSON",
            "keep one to grade by",
            "grader is 'colour'",
            "answers the tool 'price', which the row does not declare",
            "asks nothing",
            "nothing is fetched",
            "preference pair",
        ),
        strict=True,
    ):
        assert line.startswith(f"{path}:{number}: ") and said in line, line


def test_skipped_rows_are_counted_and_told_up_to_a_limit(write, read):
    path = write([chat("a", answer="4"), chat("b"), chat("c"), chat("d", answer="4")])
    counts, told = Counter(), []
    tasks = read(train=path, graded=True, on_error="skip", counts=counts, tell=told.append)
    assert [task.conversation.messages[0].text for task in tasks] == ["a", "d"]
    assert counts == {"rows": 4, "rejected": 2, "tasks": 2}
    assert told[0].startswith("train: 2 rows left out (data.on_error: skip)") and ":2: " in told[0]
    with pytest.raises(DataError, match=r"over data.max_errors 1"):
        read(train=path, graded=True, on_error="skip", max_errors=1)
    assert len(read(train=path)) == 4, "other rewards need no grader"


def test_a_prompt_that_leaves_no_room_is_counted_or_refused(write, read):
    path = write([chat("short", answer="4"), chat("long " * 100, answer="4")])
    counts, told = Counter(), []
    (task,) = read(train=path, max_length=120, counts=counts, tell=told.append)
    assert task.conversation.messages[0].text == "short"
    assert counts == {"rows": 2, "too_long": 1, "tasks": 1}
    assert "1 prompts leave no room for an answer in data.max_length 120" in told[0]
    assert f"{path}:2: the prompt has " in told[0]
    with pytest.raises(DataError, match=rf"{path}:2: the prompt has \d+ tokens, which leaves no"):
        read(train=path, max_length=120, too_long="error")
    with pytest.raises(DataError, match=r"no task for train .*2 prompts that leave no room"):
        read(train=path, max_length=20)


def test_the_held_out_share_is_drawn_by_the_seed_and_never_asks_the_same(write, read):
    rows = [chat(f"question {n % 20}", answer=str(n)) for n in range(40)]
    path = write(rows)

    def numbers(split, seed=3):
        tasks = read(split, seed=seed, train=path, eval_fraction=0.25)
        return [task.row["answer"] for task in tasks]

    train, held = numbers("train"), numbers("eval")
    assert (len(train), len(held)) == (30, 10)
    asked = [{int(n) % 20 for n in part} for part in (train, held)]
    assert not asked[0] & asked[1] and len(asked[1]) == 5
    assert held == numbers("eval") and held != numbers("eval", seed=4)
    assert sorted([*train, *held], key=int) == [str(n) for n in range(40)]


def test_held_out_data_of_its_own(write, read):
    train, held = write([chat("a")], "a.jsonl"), write([chat("b")], "b.jsonl")
    (task,) = read("eval", train=train, eval=held)
    assert task.conversation.messages[0].text == "b"
    with pytest.raises(DataError, match="holds nothing out"):
        read("eval", train=train)


def test_parts_of_a_source_are_drawn_by_its_weight(write, read):
    path = write([chat(str(n)) for n in range(10)])
    tasks = read(train={"path": path, "weight": 1.5})
    texts = [int(task.conversation.messages[0].text) for task in tasks]
    assert texts[:10] == list(range(10)) and len(set(texts[10:])) == 5 == len(texts[10:])
    assert [task.number for task in tasks] == list(range(15))


def test_rows_of_an_own_environment_may_ask_nothing(write, read):
    path = write([{"prices": {"pear": 3}}, chat("a", tool_results="its own affair")])
    tasks = read(train=path, own_environment=True)
    assert tasks[0].conversation.messages == [] and tasks[0].row == {"prices": {"pear": 3}}
    assert tasks[1].conversation.messages[0].text == "a"
    with pytest.raises(DataError, match=r":1: .*prices"):
        read(train=path)


def test_a_missing_file_is_refused(read):
    with pytest.raises(Exception, match=r"nothing-here\.jsonl"):
        read(train="nothing-here.jsonl")
