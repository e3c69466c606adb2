"""Prompt files, the mistakes in them, and the graders."""

import json
import time

import pytest

from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.prompts import read_questions
from gptoss_tune.grading import text as graders
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.grader import Grading
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.grading.text import Exact, Pattern, normalized
from gptoss_tune.harmony.reading import ReadSettings
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.shipped import shipped

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
DOTTED = {"function": {"name": "get.weather", "arguments": "{}"}}
NAMES = (("get.weather", "get_weather"),)
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}


@pytest.fixture
def read(vocabulary, write_rows):
    def run(*rows, efforts=("medium",), limit=100, max_new_tokens=64, **settings):
        renderer = Renderer(vocabulary, RenderSettings())
        path = write_rows("prompts.jsonl", *rows)
        return read_questions(
            [path],
            renderer,
            limit=limit,
            efforts=efforts,
            max_new_tokens=max_new_tokens,
            **settings,
        )

    return run


def text(vocabulary, question):
    return vocabulary.encoding.decode(list(question.prompt_ids))


def test_prompts_in_every_format_end_where_the_assistant_answers(read, vocabulary):
    asked = {"role": "user", "content": "2 + 2?"}
    rows = (
        {"prompt": "2 + 2?"},
        {"prompt": [asked]},
        {"messages": [asked]},
        {"messages": [asked, {"role": "assistant", "content": "4", "thinking": "Add."}]},
        {"prompt": "2 + 2?", "completion": "4"},
        {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
        {"messages": [asked, {"role": "assistant", "channel": "final", "content": "4"}]},
    )
    questions = read(*rows)
    assert len(questions) == len(rows)
    assert {q.prompt_ids for q in questions} == {questions[0].prompt_ids}
    assert text(vocabulary, questions[0]).endswith(
        "<|start|>user<|message|>2 + 2?<|end|><|start|>assistant"
    )
    assert [q.source.rpartition(":")[2] for q in questions] == list("1234567")
    assert questions[3].messages == ({"role": "user", "content": "2 + 2?"},)


def test_instructions_tools_and_results_reach_the_prompt(read, vocabulary):
    asked = {"role": "user", "content": "Oslo?"}
    called = {"role": "assistant", "tool_calls": [CALL], "thinking": "Look it up."}
    result = {"role": "tool", "tool_call_id": "1", "content": "snow"}
    system = {"role": "system", "content": "Be brief."}
    fresh, waiting, finished, short = read(
        {"messages": [system, asked], "tools": [TOOL]},
        {"messages": [system, asked, called, result], "tools": [TOOL]},
        {
            "messages": [asked, called, result, {"role": "assistant", "content": "Snow."}],
            "tools": [TOOL],
        },
        {"prompt": "Oslo?", "system": "Be brief."},
    )
    assert fresh.recipients == waiting.recipients == {"functions.get_weather"}
    assert "get_weather" in text(vocabulary, fresh) and "Be brief." in text(vocabulary, fresh)
    assert text(vocabulary, waiting).count("Look it up.") == 1  # the turn is still going on
    assert text(vocabulary, waiting).endswith("snow<|end|><|start|>assistant")
    assert "snow" not in text(vocabulary, finished)  # the tool's result belongs to the answer
    assert "Be brief." in text(vocabulary, short)


def test_prompts_are_read_as_the_recipe_has_rows_read(read, vocabulary):
    reading = ReadSettings(
        thinking_tags="split", roles=(("Bot", "assistant"), ("Klant", "user")), tool_names=NAMES
    )
    tool = {"name": "get.weather", "parameters": TOOL["function"]["parameters"]}
    called = {"from": "Bot", "value": "<think>Look.</think>", "tool_calls": [DOTTED]}
    talk = [{"from": "Klant", "value": "Oslo?"}, called, {"from": "tool", "value": "snow"}]
    answer = {"from": "Bot", "value": "<think>It</think>Snow."}
    asked, waiting, finished, listed = read(
        {"messages": talk[:1], "tools": [tool]},
        {"messages": json.dumps(talk), "tools": [tool]},
        {"messages": [*talk, answer], "tools": [tool]},
        {"conversations": json.dumps([*talk, answer]), "tools": [tool]},
        reading=reading,
    )
    assert asked.recipients == {"functions.get_weather"}
    assert asked.prompt_ids == finished.prompt_ids == listed.prompt_ids
    assert text(vocabulary, waiting).endswith("snow<|end|><|start|>assistant")
    assert "<|channel|>analysis<|message|>Look.<|end|>" in text(vocabulary, waiting)


def test_messages_in_a_text_of_json_are_asked_as_their_list_is(read):
    asked = [{"role": "user", "content": "2 + 2?"}]
    answered = [*asked, {"role": "assistant", "content": "4"}]
    in_sharegpt = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
    questions = read(
        *({"messages": shape} for shape in (asked, answered, in_sharegpt)),
        *({"messages": json.dumps(shape)} for shape in (asked, answered, in_sharegpt)),
    )
    assert len({question.prompt_ids for question in questions}) == 1


def test_efforts_multiply_rows_that_name_none(read, vocabulary):
    questions = read(
        {"prompt": "a"}, {"prompt": "b", "reasoning_effort": "high"}, efforts=("low", "medium")
    )
    assert [(q.effort, q.source[-1]) for q in questions] == [
        ("low", "1"),
        ("medium", "1"),
        ("high", "2"),
    ]
    for question in questions:
        assert f"Reasoning: {question.effort}" in text(vocabulary, question)
    assert len(read(*[{"prompt": str(n)} for n in range(9)], limit=4)) == 4


def test_all_mistakes_are_in_one_message_with_their_lines(read):
    with pytest.raises(DataError) as caught:
        read(
            {"prompt": "fine", "answer": "4"},
            {"prompt": "a", "answer": "4", "pattern": "4"},
            "{broken",
            {"prompt": "a", "pattern": "(unclosed"},
            {"prompt": "a", "pattern": "x*"},
            {"prompt": "a", "pattern": "x" * 1001},
            {"prompt": "a", "answer": " . "},
            {"prompt": "a", "answer": []},
            {"prompt": "a", "answer": 4},
            {"question": "a"},
            {"messages": [{"role": "assistant", "content": "4"}]},
            {"prompt": "word " * 131_072},
        )
    lines = str(caught.value).splitlines()
    assert "11 rows cannot be evaluated with" in lines[0]
    for number, (line, said) in enumerate(
        zip(
            lines[1:],
            (
                "keep one to grade by",
                "not JSON",
                "no regular expression",
                "matches the empty text",
                "expected 1 to 1,000",
                "an empty answer can never be right",
                "empty list",
                "answer is a number; expected text",
                "no known columns",
                "asks nothing",
                "over the 131,072",
            ),
            strict=True,
        ),
        start=2,
    ):
        assert f"prompts.jsonl:{number}: " in line and said in line


def test_a_missing_file_is_named(vocabulary):
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        read_questions(
            ["nowhere.jsonl"],
            Renderer(vocabulary, RenderSettings()),
            limit=1,
            efforts=["low"],
            max_new_tokens=1,
        )


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", "\n"), ("a.json", "[]"), ("a.csv", "prompt,answer\n")]
)
def test_files_without_a_row_ask_nothing_and_are_refused(vocabulary, tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=rf"{name}: holds no row; expected at least one prompt"):
        read_questions(
            [str(path)],
            Renderer(vocabulary, RenderSettings()),
            limit=1,
            efforts=["low"],
            max_new_tokens=1,
        )


@pytest.mark.parametrize(
    "given, equal",
    [
        ("Paris", True),
        (" paris.\n", True),
        ("PARIS", True),
        ("Ｐａｒｉｓ", True),
        ("Pa ris", False),
        ("Paris, France", False),
        ("**Paris**", False),
        ("", False),
        (".", False),
        (None, False),
    ],
)
def test_exact_match_after_normalisation(given, equal):
    assert Grading().grade(Exact(("Lutetia", "Paris")), Given(given)) == {
        "kind": "exact",
        "passed": equal,
        "expected": "Lutetia | Paris",
    }


@pytest.mark.parametrize(
    "typed, written",
    [
        ("well-known", "well\u2011known"),
        ("-5", "\u22125"),
        ("1990-1995", "1990\u20131995"),
        ("don't", "Don\u2019t"),
        ('"no"', "\u201cNo\u201d."),
        ("10 km", "10\u202fkm"),
        ("ab", "a\u200bb"),
    ],
)
def test_typographic_marks_are_the_typed_ones(typed, written):
    assert Grading().grade(Exact((typed,)), Given(written))["passed"]
    assert Grading().grade(Exact((written,)), Given(typed))["passed"]


def test_normalisation_keeps_what_tells_answers_apart():
    assert normalized("-5") != normalized("5")
    assert normalized("1,000") != normalized("1000")
    assert normalized("3.5") != normalized("35")
    assert normalized("a  \n b") == "a b"


def test_patterns_are_searched_in_the_final_text():
    judge = Grading()
    assert judge.grade(Pattern(r"\b42\b"), Given("It is 42."))["passed"]
    assert not judge.grade(Pattern(r"\b42\b"), Given("It is 421."))["passed"]
    assert not judge.grade(Pattern("x"), Given(None))["passed"]


def test_the_advice_for_columns_of_other_names_works(read):
    with pytest.raises(DataError, match="write the question under the key prompt") as caught:
        read({"question": "3+4?", "answer": "7"})
    assert "template" in str(caught.value) and "(columns)" not in str(caught.value)
    (question,) = read({"prompt": "3+4?", "answer": "7"}, efforts=["low"])
    assert question.grader == Exact(("7",))


BOMBS = (
    r"\p{L}{1000000000}",
    r"a{1000000000,}?",
    r"(?:(?:a{100}){100}){1000}",
    r"(?:a{1000}b[(]c){1000}",
    r"(?:a{e<=1}){10000000}",
    "(?x)a{ 1000000000}",
    "(?ix)a{1#c\n000000000}",
    r"(?<=\p{L}{1000000})b",
    "a{" + "9" * 900 + "}",
)


@pytest.mark.parametrize("pattern", BOMBS)
def test_a_pattern_that_would_take_all_memory_is_not_compiled(monkeypatch, pattern):
    monkeypatch.setattr(graders.regex, "compile", lambda _: pytest.fail("it was compiled"))
    with pytest.raises(DataError, match=r"^x:1: pattern .*(repetitions|without)"):
        read_grader({"pattern": pattern}, "x:1")


@pytest.mark.parametrize(
    "pattern",
    [
        r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        r"\b\d{4}-\d{2}-\d{2}\b",
        r"(?:\d{1,3}\.){3}\d{1,3}",
        r"a{,1000000000}b",
        r"\{ \"answer\": 4 \}",
        r"(?x) \d{2} # two digits",
    ],
)
def test_patterns_that_people_write_are_taken(pattern):
    assert read_grader({"pattern": pattern}, "x:1") == Pattern(pattern)


def test_a_pattern_that_backtracks_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(Pattern, "seconds", 0.2)
    slow = Pattern(r"(?:(?:a{1,1000}){1,1000}){1,1000}b")
    judge = Grading(seconds=0.5)
    notes = [judge.grade(slow, Given("a" * 500)) for _ in range(5)]
    assert not any(note["passed"] for note in notes)
    assert "did not end" in notes[0]["note"] and "not judged" in notes[-1]["note"]
    # Text compared word for word needs no searching time.
    assert judge.grade(Exact(("a",)), Given("a"))["passed"]


def test_python_re_would_have_hung():
    """The control: the same search in the standard library does not end by itself."""
    import subprocess
    import sys

    code = "import re; re.search(r'(?:(?:a{1,1000}){1,1000}){1,1000}b', 'a' * 500)"
    started = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], timeout=1.5)
    assert time.monotonic() - started >= 1.5


@pytest.mark.parametrize("path", sorted((shipped("data") / "prompts").glob("*.jsonl")))
def test_shipped_prompts_can_be_asked(vocabulary, path):
    questions = read_questions(
        [str(path)],
        Renderer(vocabulary, RenderSettings()),
        limit=1000,
        efforts=["medium"],
        max_new_tokens=2048,
    )
    assert len({question.prompt_ids for question in questions}) == len(questions) >= 6
