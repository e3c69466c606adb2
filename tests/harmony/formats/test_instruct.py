"""A question and its answer in two columns: recognised, or answered with the columns to write."""

import pytest
import yaml

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.dataset.kinds import SampleKind
from gptoss_tune.harmony.dataset.load import load_dataset
from gptoss_tune.harmony.dataset.statistics import data_statistics
from gptoss_tune.harmony.formats.detect import format_of
from gptoss_tune.harmony.formats.registry import read_row
from gptoss_tune.recipe import DataSection

RECOGNISED = {
    "Alpaca": ({"instruction": "Say", "input": "it", "output": "A"}, "Say\n\nit", "A"),
    "Alpaca without input": ({"instruction": "Say", "input": "", "output": "A"}, "Say", "A"),
    "Alpaca from CSV": ({"instruction": "Say", "output": "A"}, "Say", "A"),
    "Alpaca with its own text": (
        {"instruction": "Say", "input": "", "output": "A", "text": "### Response:\nA"},
        "Say",
        "A",
    ),
    "Dolly": ({"instruction": "Who?", "context": "She did.", "response": "A"},
              "Who?\n\nShe did.", "A"),
    "prompt, response": ({"prompt": "Q", "response": "A"}, "Q", "A"),
    "prompt, completion": ({"prompt": "Q", "completion": "A"}, "Q", "A"),
    "instruction, response": ({"instruction": "Q", "response": "A"}, "Q", "A"),
    "question, answer": ({"question": "Q", "answer": "A"}, "Q", "A"),
    "capital letters": ({"Question": "Q", "Answer": "A"}, "Q", "A"),
    "query, response": ({"query": "Q", "response": "A"}, "Q", "A"),
    "input, output": ({"input": "Q", "output": "A"}, "Q", "A"),
    "problem, solution": ({"problem": "Q", "solution": "A"}, "Q", "A"),
    "null beside": ({"question": "Q", "answer": "A", "response": None}, "Q", "A"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECOGNISED)
def test_a_question_and_its_answer_are_a_chat(name):
    row, asked, answered = RECOGNISED[name]
    conversation = read_row(row, "d.jsonl:1")
    assert [(m.header.role, m.header.channel, m.text) for m in conversation.messages] == [
        ("user", None, asked),
        ("assistant", "final", answered),
    ]
    assert not conversation.notes.warnings


def test_what_stands_beside_is_read_as_beside_any_row():
    row = {
        "system_prompt": "Be brief.",
        "question": "Q",
        "response": "A",
        "reasoning": "Because.",
        "reasoning_effort": "high",
        "weight": 0.5,
        "category": "x",
    }
    conversation = read_row(row, "d.jsonl:1")
    assert [m.text for m in conversation.messages] == ["Q", "Because.", "A"]
    assert (conversation.instructions, conversation.effort, conversation.weight) == (
        "Be brief.",
        "high",
        0.5,
    )
    (told,) = conversation.notes.warnings
    assert "the key 'category' of a row is not read" in told


def test_turns_before_the_instruction_are_turns():
    row = {"instruction": "Q3", "output": "A3", "history": [["Q1", "A1"], ["Q2", "A2"]]}
    said = [message.text for message in read_row(row, "row:1").messages]
    assert said == ["Q1", "A1", "Q2", "A2", "Q3", "A3"]
    with pytest.raises(DataError, match="history holds text; expected pairs"):
        read_row({**row, "history": ["Q1", "A1"]}, "row:1")


AMBIGUOUS = {
    "two answers": ({"problem": "Q", "solution": "long", "answer": "4"}, ("Q", "4")),
    "two questions": ({"question": "Q", "query": "q", "answer": "A"}, ("Q", "A")),
    "a passage": ({"context": "P", "question": "Q", "answer": "A"}, ("P\n\nQ", "A")),
    "input and context": (
        {"instruction": "Q", "input": "I", "context": "C", "output": "A"},
        ("Q\n\nI", "A"),
    ),
    "names of two words": ({"The Question": "Q", "Best Answer": "A"}, ("Q", "A")),
    "names that say nothing": ({"foo": "Q", "bar": "A"}, ("Q", "A")),
    "one name that says something": ({"id": "7", "question": "Q", "text_of": "A"}, ("Q", "A")),
    "a word of the templates": ({"if": "Q", "else": "A"}, ("Q", "A")),
    "SQuAD": (
        {"id": "1", "title": "T", "context": "P", "question": "Q", "answers": {"text": ["A"]}},
        ("P\n\nQ", "A"),
    ),
    "a list of answers": ({"question": "Q", "answer": ["A", "B"]}, ("Q", "A")),
    "a number": ({"question": "Q", "answer": 4}, ("Q", "4")),
    "an apostrophe": ({"it's": "no", "human": "Q", "bot": "A"}, ("Q", "A")),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_the_columns_that_a_message_names_can_be_used(name, write_jsonl, vocabulary):
    row, (asked, answered) = AMBIGUOUS[name]
    path = write_jsonl([row])
    data = DataSection.model_validate({"train": path})
    (message,) = data_statistics(data, vocabulary, seed=0).splits["train"].report.rejected
    assert "write beside the path, under data.train" in message
    line = message.split("columns: ")[1]
    columns = yaml.safe_load(line[: line.index('"}') + 2])
    mapped = DataSection.model_validate({"train": [{"path": path, "columns": columns}]})
    (found,) = load_dataset(mapped, split="train", vocabulary=vocabulary)
    said = vocabulary.decode(found["input_ids"])
    assert f"<|start|>user<|message|>{asked}<|end|>" in said
    assert said.endswith(f"<|message|>{answered}<|return|>")


def test_one_text_of_another_name_is_offered_as_raw_text(write_jsonl, vocabulary):
    path = write_jsonl([{"content": "A story.", "id": "1"}])
    with pytest.raises(DataError) as caught:
        load_dataset(
            DataSection.model_validate({"train": path}), split="train", vocabulary=vocabulary
        )
    assert 'columns: {text: "{{ content }}"}' in str(caught.value)
    columns = {"text": "{{ content }}"}
    mapped = DataSection.model_validate({"train": [{"path": path, "columns": columns}]})
    (row,) = load_dataset(mapped, split="train", vocabulary=vocabulary)
    assert vocabulary.decode(row["input_ids"]) == "A story.<|endoftext|>"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "Say it"}, "the row has 'instruction' and no answer to it"),
        ({"instruction": "Say it", "output": None}, "has 'instruction' and no answer to it"),
        ({"instruction": "Say it", "output": " "}, "output is empty; add its text"),
        ({"question": "", "answer": "A"}, "question is empty; add its text"),
        ({"question": {"a": 1}, "answers": {"text": ["A"]}}, "no known columns"),
    ],
)
def test_rows_without_a_question_or_an_answer_are_refused(row, said):
    with pytest.raises(DataError) as caught:
        read_row(row, "d.jsonl:4")
    assert str(caught.value).startswith("d.jsonl:4: ") and said in str(caught.value)


def test_answers_in_other_names_can_have_a_label(write_jsonl, vocabulary):
    rows = [{"question": f"Q{n}", "answer": "A", "label": n % 2 == 0} for n in range(4)]
    data = DataSection.model_validate({"train": write_jsonl(rows)})
    loaded = load_dataset(data, split="train", vocabulary=vocabulary, kind=SampleKind("label"))
    assert [row["branches"] for row in loaded] == [[1], [-1], [1], [-1]]


def test_prompts_that_are_graded_stay_prompts():
    for row in ({"prompt": "Q", "answer": "A"}, {"prompt": "Q", "text": "x"}):
        assert format_of(row, "row:1", templates=False) == "prompt"
