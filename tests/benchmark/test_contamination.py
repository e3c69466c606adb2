"""Planted questions in training rows are found, with their places; unrelated rows are not."""

import json
import random
import tracemalloc

import pytest

from gptoss_tune.benchmark.contamination import contamination, ngram_size, tokens_of
from gptoss_tune.benchmark.suites.open import open_suite
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.recipe import DataSection

LONG = (
    "A baker has 240 rolls and sells a quarter of them before eight in the morning, then a third "
    "of what is left before noon, and gives ten to the fire brigade in the afternoon. How many "
    "rolls are still there when the shop closes at six?"
)
MIDDLE = (
    "Which of the two bridges in the old town was opened first, the one by the mill or the one "
    "that leads to the salt market?"
)
SHORT = "How tall is the tower of Ostrava's town hall?"
TINY = "2 + 2?"
CHINESE = "小明的爷爷今年七十二岁,比小明大六十三岁。再过几年爷爷的年龄是小明的四倍?"


@pytest.fixture(scope="module")
def vocabulary():
    return load_vocabulary(None)


@pytest.fixture
def check(tmp_path, vocabulary):
    """Return a function from training rows to what is found of the questions."""
    tasks = tmp_path / "tasks.jsonl"
    asked = [(LONG, "110"), (MIDDLE, "mill"), (SHORT, "85"), (TINY, "4"), (CHINESE, "12")]
    tasks.write_text(
        "".join(json.dumps({"prompt": q, "answer": a}) + "\n" for q, a in asked), encoding="utf-8"
    )
    suite = open_suite(str(tasks), Renderer(vocabulary, RenderSettings()), efforts=["low", "high"])

    def run(*rows, **settings):
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data = DataSection.model_validate({"train": [{"path": str(path)}], **settings})
        return contamination([suite], data, vocabulary, seed=0)["tasks"]

    return run


def chat(question, answer="I do not know.", **more):
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": said, **more}


def found_lines(result):
    """Return by number of the question the lines of its rows."""
    return {
        int(one.source.rpartition(":")[2]): [int(row.rpartition(":")[2]) for row in one.rows]
        for one in result.found
    }


OTHER = [
    chat(f"What is the capital of {name}?", f"{name}ville.") for name in ("Utopia", "Ruritania")
] + [
    chat(
        "A baker has 96 loaves and sells half of them on Monday. How many loaves are left over?",
        "48 rolls are still there when the shop closes.",
    ),
    chat("How tall is the tower of the old church in Brno?", "84 metres."),
    chat("What is 2 + 2?", "It is 4, as 2 + 2 = 4."),
    chat("小红的奶奶今年六十八岁,小红八岁。两个人一共多少岁?", "76"),
]


def test_unrelated_rows_are_not_found(check):
    result = check(*OTHER)
    assert result.found == () and result.share == 0
    assert (result.questions, result.rows, result.unread) == (5, len(OTHER), 0)


@pytest.mark.parametrize("number", range(1, 6))
def test_an_exact_question_is_found_with_its_place(check, number):
    question = [LONG, MIDDLE, SHORT, TINY, CHINESE][number - 1]
    result = check(*OTHER, chat(question), *OTHER)
    assert found_lines(result) == {number: [len(OTHER) + 1]}
    assert result.share == 1 / 5 and result.found[0].share == 1.0
    assert result.found[0].answered is False


def called(arguments, result):
    function = {"name": "f", "arguments": json.dumps(arguments)}
    return {
        "messages": [
            {"role": "user", "content": "Look it up."},
            {"role": "assistant", "tool_calls": [{"id": "1", "function": function}]},
            {"role": "tool", "tool_call_id": "1", "content": json.dumps(result)},
            {"role": "assistant", "content": "No."},
        ]
    }


def system(text):
    return {"messages": [{"role": "system", "content": text}, *chat("Hi")["messages"]]}


PLANTED = {
    "case": chat(SHORT.upper().replace("?", " ?!")),
    "punctuation": chat("  How tall *is* the “tower” of Ostrava’s\n\ntown-hall?"),
    "embedded": chat(f"Here is a question I found. {SHORT} I would like to know."),
    "system": system(f"FAQ: {SHORT} 85 metres."),
    "thought": {"messages": [{"role": "assistant", "content": "Yes.", "thinking": SHORT}]},
    "arguments": called({"q": SHORT}, "nothing"),
    "result": called({"q": "tower"}, {"text": f"a\n{SHORT}\nb"}),
    "pair": {"prompt": "Hi", "chosen": SHORT, "rejected": "no"},
    "text": {"text": f"Once upon a time. {SHORT} The end."},
}


@pytest.mark.parametrize("row", PLANTED.values(), ids=list(PLANTED))
def test_it_is_found_wherever_it_stands(check, row):
    assert found_lines(check(*OTHER, row)) == {3: [len(OTHER) + 1]}


def test_a_part_of_a_long_question_is_found_and_a_little_of_it_is_not(check):
    words = LONG.split()
    assert 1 in found_lines(check(chat(" ".join(words[: len(words) * 3 // 4]))))
    assert found_lines(check(chat(" ".join(words[: len(words) // 3])))) == {}


@pytest.mark.parametrize("question", [LONG, MIDDLE, SHORT])
def test_the_same_words_in_another_order_are_no_question(check, question):
    assert check(chat(" ".join(question.split()[::-1]))).found == ()


def test_two_texts_of_a_row_make_no_question_together(check):
    first, second = SHORT.split(" of ")
    assert check({"prompt": first, "completion": f"of {second}"}).found == ()


def test_its_answer_beside_it_is_told(check):
    result = check(chat(LONG, "110 rolls."), chat(LONG, "111 rolls."))
    assert result.found[0].answered and result.found[0].row_count == 2
    assert not check(chat(LONG, "1101 rolls.")).found[0].answered


def test_many_rows_are_counted_and_some_named(check):
    (one,) = check(*[chat(SHORT)] * 12).found
    assert one.row_count == 12 and found_lines(check(*[chat(SHORT)] * 12)) == {3: [1, 2, 3, 4, 5]}


def test_rows_that_cannot_be_read_are_counted(check, tmp_path, vocabulary):
    result = check(chat(SHORT))
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text() + "{broken\n" + json.dumps(chat(TINY)) + "\n")
    data = DataSection.model_validate({"train": [{"path": str(path)}]})
    suite = open_suite(str(tmp_path / "tasks.jsonl"), Renderer(vocabulary, RenderSettings()))
    result = contamination([suite], data, vocabulary, seed=0)["tasks"]
    assert (result.rows, result.unread) == (2, 1) and found_lines(result) == {3: [1], 4: [3]}


def test_columns_and_limits_of_the_recipe_hold(check, tmp_path, vocabulary):
    check(chat("x"))
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"f": q, "a": "x"}) + "\n" for q in ("Hi", SHORT, LONG)))
    source = {
        "path": str(path),
        "limit": 2,
        "columns": {"prompt": "{{ f }}", "completion": "{{ a }}"},
    }
    data = DataSection.model_validate({"train": [source]})
    suite = open_suite(str(tmp_path / "tasks.jsonl"), Renderer(vocabulary, RenderSettings()))
    assert found_lines(contamination([suite], data, vocabulary, seed=0)["tasks"]) == {3: [2]}


def test_rows_that_are_held_out_are_not_trained(check):
    rows = [
        chat(f"Question number {n} of many questions about towers", f"Answer {n}.")
        for n in range(9)
    ]
    rows.append(chat(SHORT))
    by_seed = {len(check(*rows, eval_fraction=0.5).found), len(check(*rows).found)}
    whole, half = check(*rows), check(*rows, eval_fraction=0.5)
    assert whole.rows == 10 and half.rows == 5 and 1 in by_seed


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (" ".join("abcdefghij"[n % 10] + str(n) for n in range(40)), 13),
        (" ".join(str(n) for n in range(39)), 8),
        (" ".join(str(n) for n in range(19)), 5),
        ("one two three four five", None),
        (CHINESE, 10),
        ("多" * 40, 16),
        ("多" * 11, None),
    ],
)
def test_the_size_of_ngrams_follows_the_documented_rule(text, size):
    assert ngram_size(tokens_of(text))[0] == size


def test_memory_does_not_grow_with_the_rows(check):
    generator = random.Random(1)
    words = [f"w{n}" for n in range(500)]
    rows = [chat(" ".join(generator.choices(words, k=60)), "ok") for _ in range(3000)]

    def peak(count):
        tracemalloc.start()
        assert check(*rows[:count]).rows == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    check(*rows[:10])
    small, large = peak(300), peak(3000)
    assert large - small < 3_000_000  # the rows written here themselves have 700 kB more


@pytest.mark.parametrize(
    "asked, right, wrong",
    [
        ({"grader": "choice", "choices": ["Lyon", "The mill"], "answer": "B"}, "The mill.", "Lyon"),
        ({"grader": {"kind": "number", "tolerance": 1}, "answer": 42}, "It is 42.", "It is 41."),
        ({"grader": {"kind": "number", "unit": "km"}, "answer": ["7", 42]}, "42 kilometres", "4"),
        ({"grader": "number", "answer": 42}, "42", "24"),
        ({"answer": ["by the mill", "a | b"]}, "a b", "b a"),
    ],
)
def test_an_answer_is_known_whatever_grades_it(tmp_path, vocabulary, asked, right, wrong):
    tasks, train = tmp_path / "tasks.jsonl", tmp_path / "train.jsonl"
    tasks.write_text(json.dumps({"prompt": SHORT, **asked}))
    suite = open_suite(str(tasks), Renderer(vocabulary, RenderSettings()))
    data = DataSection.model_validate({"train": [{"path": str(train)}]})
    for answer, known in ((right, True), (wrong, False)):
        train.write_text(json.dumps(chat(SHORT, answer)) + "\n")
        (overlap,) = contamination([suite], data, vocabulary, seed=0)["tasks"].found
        assert overlap.answered is known
