"""Rows with tests of code: the three styles, what is refused, what a wrong answer is told."""

import textwrap

import pytest

from gptoss_tune.errors import DataError, MachineError
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.code import protection as protections
from gptoss_tune.grading.code.compare import same
from gptoss_tune.grading.code.extract import assembled, code_of
from gptoss_tune.grading.code.inside.wire import decode, dumps, encode, loads
from gptoss_tune.grading.code.protection import Protection, require
from gptoss_tune.grading.code_grader import judge_many
from gptoss_tune.grading.rows import read_grader

ADD = {"entry_point": "add", "function_cases": [{"args": [1, 2], "expected": 3}]}
HUMAN_EVAL = {
    "prompt": 'from typing import List\n\n\ndef total(items: List[int]) -> int:\n    """Sum."""\n',
    "entry_point": "total",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n",
}
DOCUMENTED = (
    'Here:\n```python\ndef add(a, b):\n    """Add.\n\n    ```python\n    add(1, 2)\n    ```\n\n'
    '    ```\n    3\n    ```\n    """\n    {}\n```\nThat adds.'
)
MBPP = {
    "test_list": ["assert pair(1, 2) == (1, 2)", "assert math.isclose(half(3), 1.5)"],
    "test_imports": ["import math"],
    "test_setup_code": "",
}
PROGRAM = {"stdio_cases": [{"input": "1 2\n", "output": "3\n"}, {"input": "4 5\n", "output": "9"}]}


@pytest.mark.parametrize(
    ("row", "text", "note"),
    [
        (ADD, "```python\ndef add(a, b):\n    return a + b\n```", None),
        (ADD, "```python\ndef add(a, b):\n    return a + b + 1\n```",
         "add(1, 2): gave 4; expected 3"),
        (ADD, "```python\ndef add(a, b):\n    return a / (b - 2)\n```",
         "ZeroDivisionError: division"),
        (ADD, "```python\ndef add(a, b):\n    return\n```", "gave None; expected 3"),
        (ADD, "```python\ndef plus(a, b):\n    return a + b\n```", "KeyError: 'add'"),
        (ADD, "```python\ndef add(a, b:\n    return a + b\n```", "SyntaxError: "),
        (ADD, "```python\nimport numpy\ndef add(a, b): return a + b\n```",
         "No module named 'numpy'"),
        (ADD, "```python\nimport requests\n```", "ModuleNotFoundError"),
        (ADD, "I would add the two numbers.", "no code in the answer"),
        (ADD, "", "no code in the answer"),
        (ADD, None, "no code in the answer"),
        (ADD, "```\n```", "no code in the answer"),
        (ADD, "def add(a, b):\n    return a + b\n", None),
        (ADD, "def add(a, b):\n    return a + b\n\nThis adds.", "no Python"),
        (ADD, "First\n```python\ndef add(a, b):\n    return 0\n```\nbetter\n"
         "```python\ndef add(a, b):\n    return a + b\n```\nUse:\n```python\nadd(1, 2)\n```", None),
        (ADD, "```json\n{}\n```\n```py\ndef add(a, b): return a + b\n```", None),
        (ADD, "```python\ndef add(a, b):\n    return a + b", None),
        (ADD, DOCUMENTED.format("return a + b"), None),
        (ADD, DOCUMENTED.format("return a - b"), "add(1, 2): gave -1; expected 3"),
        (ADD, "* so:\n" + textwrap.indent(DOCUMENTED.format("return a + b"), "  "), None),
        (ADD, "```python\ndef add(a, b):\n    return a + b\n  ```\nThat adds.", None),
        (ADD, "```python\ndef add(a, b):\n    return 0\n  ```\nbetter:\n"
         "```python\ndef add(a, b):\n    return a + b\n```\nThat adds.", None),
        (ADD, "- so:\n  ```python\n  def add(a, b):\n      return a + b\n  ```\n", None),
        ({**ADD, "timeout_s": 0.5}, "```python\ndef add(a, b):\n    while True: pass\n```",
         "add(1, 2): timed out after 0.5 s"),
        (HUMAN_EVAL, "```python\n    return sum(items)\n```", None),
        (HUMAN_EVAL, "```python\nreturn sum(items)\n```", None),
        (HUMAN_EVAL, "```python\ndef total(items: List[int]):\n    return sum(items)\n```", None),
        (HUMAN_EVAL, "```python\n    return len(items)\n```",
         "assert candidate([1, 2]) == 3: failed; the last call gave 2"),
        (HUMAN_EVAL, "```python\n    return items[9]\n```",
         "the code raised IndexError: list index"),
        (HUMAN_EVAL, "```python\n    pass\n```", "the last call gave None"),
        (MBPP, "```python\ndef pair(a, b): return a, b\ndef half(x): return x / 2\n```", None),
        (MBPP, "```python\ndef pair(a, b): return [a, b]\ndef half(x): return x / 2\n```",
         "assert pair(1, 2) == (1, 2): failed"),
        (MBPP, "```python\ndef pair(a, b): return a, b\n```", "NameError: name 'half'"),
        (PROGRAM, "```python\nprint(sum(map(int, input().split())))\n```", None),
        (PROGRAM, "```python\nprint(3)\n```", "case 2: line 1 is 3; expected 9"),
        (PROGRAM, "```python\nprint(3, end='')\nprint()\nprint()\n```", "case 2"),
        (PROGRAM, "```python\nprint('Sum:', sum(map(int, input().split())))\n```",
         "line 1 is Sum: 3"),
        (PROGRAM, "```python\npass\n```", "case 1: printed 0 lines; expected 1"),
        (PROGRAM, "```python\nprint(sum(map(int, input().split())))\nraise SystemExit(2)\n```",
         "case 1: ended with exit code 2"),
        (PROGRAM, "```python\nprint(input() + input())\n```", "EOFError: EOF when reading a line"),
    ],
)  # fmt: skip
def test_answers_are_judged_with_a_note(row, text, note, verdict):
    found = verdict(row, text)
    assert found.passed == (note is None), found
    assert found.note is None if note is None else note in found.note, found.note


def test_cases_in_python_s_notation(verdict):
    row = {
        "function_cases": [
            {"call": "f((1, 2), k={3: b'x'})", "returns": "({1, 2}, None)"},
            {"call": "f('a')", "raises": "ValueError"},
        ]
    }
    right = (
        "```python\ndef f(x, k=0):\n    if k == 0: raise UnicodeError\n    return set(x), None\n```"
    )
    assert verdict(row, right).passed
    almost = (
        "```python\ndef f(x, k=0):\n    if k == 0: raise KeyError(1)\n    return set(x), None\n```"
    )
    assert "raised KeyError: 1 (line 2); expected ValueError" in verdict(row, almost).note
    listed = "```python\ndef f(x, k=0):\n    return [set(x), None]\n```"
    assert "gave [{1, 2}, None]; expected ({1, 2}, None)" in verdict(row, listed).note


def test_objects_of_the_code_are_tested_from_outside(verdict):
    row = {
        "test": "s = Stack()\ns.push(3)\ns.push({'a': (1,)})\n"
        "assert len(s) == 2 and s.top == {'a': (1,)}\n"
        "assert [x for x in s] == [3, {'a': (1,)}] and 3 in s\nassert s.pop() == {'a': (1,)}\n"
        "assert list(count(3)) == [0, 1, 2] and str(s) == 'Stack of 1'\n"
        "try:\n    s.missing\n    assert False\nexcept AttributeError:\n    pass\n",
    }
    code = """```python
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def pop(self): return self.items.pop()
    @property
    def top(self): return self.items[-1]
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __str__(self): return f"Stack of {len(self)}"
def count(n): yield from range(n)
```"""
    found = verdict(row, code)
    assert found.passed, found
    assert not verdict(row, code.replace("self.items.pop()", "self.items.pop(0)")).passed


def test_changes_in_place_are_seen_on_demand(verdict):
    row = {"test": "x = [3, 1]\nf(x)\nassert x == [1, 3]\n", "entry_point": "f"}
    code = "```python\nf = lambda x: x.sort()\n```"
    assert not verdict(row, code).passed
    assert verdict({**row, "grader": {"kind": "code", "in_place": True}}, code).passed


def test_tests_that_cannot_be_judged_say_so(verdict):
    code = "```python\ndef f(x): return x(1)\n```"
    found = verdict({"test": "assert f(lambda x: x) == 1\n", "entry_point": "f"}, code)
    assert "cannot be judged: the tests hand over a function" in found.note
    found = verdict({"test": "assert 1 == 1\n", "entry_point": "f"}, code)
    assert "cannot be judged: the tests asked nothing of the code" in found.note


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "needs one of stdio_cases, function_cases, test, test_list; got none"),
        ({**ADD, **PROGRAM}, "got stdio_cases and function_cases"),
        ({"stdio_cases": []}, "stdio_cases has no cases; every answer would pass"),
        ({"stdio_cases": [3]}, "stdio_cases[0] is 3; expected an object"),
        ({"stdio_cases": [{"input": "", "output": " \n"}]}, "a program that prints nothing"),
        ({"stdio_cases": [{"in": ""}]}, "unknown key 'in'"),
        ({"function_cases": [{"args": [], "expected": 1}]}, "no entry_point"),
        ({"entry_point": "a b", "test": "assert a"}, "expected a name"),
        ({"entry_point": "f", "function_cases": [{"args": []}]}, "one of expected and raises"),
        ({"function_cases": [{"call": "f(x)", "returns": "1"}]}, "expected values alone"),
        ({"function_cases": [{"call": "f", "returns": "1"}]}, "expected a call such as"),
        ({"function_cases": [{"call": "f(**{})", "returns": "1"}]}, "has **"),
        ({"entry_point": "g", "function_cases": [{"call": "f()", "returns": "1"}]}, "is g"),
        ({"function_cases": [{"call": "f()", "returns": "1; 2"}]}, "expected a Python value"),
        ({"test": "def check(candidate):\n    assert candidate\n"}, "name the entry_point"),
        ({"test": "f(3)\n"}, "asserts nothing; every answer would pass"),
        ({"test": "assert (\n"}, "test is no Python"),
        ({"test_list": "assert f() == 1"}, "to be lists of statements"),
        ({**ADD, "timeout_s": 0}, "timeout_s is 0; expected 0.1 to 600"),
        ({**ADD, "timeout_s": True}, "timeout_s is true"),
        ({**ADD, "memory_mib": 8}, "memory_mib is 8; expected 64 to 65536"),
        ({**ADD, "code_prefix": "def"}, "code_prefix is no Python"),
        ({**ADD, "grader": {"kind": "code", "network": True}}, "no setting 'network'"),
        ({**ADD, "grader": {"kind": "code", "tolerance": 2}}, "tolerance is 2; expected 0 to 1"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(row, message):
    with pytest.raises(DataError) as caught:
        read_grader({"grader": "code", **row}, "tasks.jsonl:7")
    assert str(caught.value).startswith("tasks.jsonl:7") and message in str(caught.value)


def test_graders_of_one_row_are_equal_and_hashable():
    first, second = (read_grader({"grader": "code", **ADD}, "a:1") for _ in range(2))
    assert first == second and hash(first) == hash(second)
    assert first.seconds == 0 and first.expected == "1 calls, such as add(1, 2)"


def test_many_verdicts_keep_their_order():
    grader = read_grader({"grader": "code", **ADD}, "a:1")
    good, bad = "```python\nadd = lambda a, b: a + b\n```", "```python\nadd = lambda a, b: a\n```"
    asked = [(grader, Given(good if number % 3 else bad)) for number in range(9)]
    verdicts = judge_many(asked, parallel=3)
    assert [verdict.passed for verdict in verdicts] == [bool(number % 3) for number in range(9)]


def test_code_is_refused_where_it_is_not_held_back():
    every = {"network", "reading", "writing", "processes", "signals", "environment"}
    require(Protection(frozenset(every), True, 7), environment={})
    require(Protection(frozenset(every - {"reading"}), False, 0), environment={})
    for missing, text in (
        ("network", "the network"),
        ("writing", "writing"),
        ("signals", "signals"),
    ):
        found = Protection(frozenset(every - {missing}), True, 7)
        with pytest.raises(MachineError, match=f"does not deny {text}"):
            require(found, environment={})
        with pytest.raises(MachineError):
            require(found, environment={protections.UNPROTECTED: "1"})
        require(found, environment={protections.UNPROTECTED: "yes"})
        assert any(line.startswith("NOT denied") for line in found.lines())


def test_another_system_is_refused_whatever_is_set(monkeypatch):
    monkeypatch.setattr(protections.sys, "platform", "darwin")
    monkeypatch.setattr(protections.platform, "system", lambda: "Darwin")
    found = protections.measure()
    assert found.lines() == [
        "code is not run here: Darwin has no seccomp, which denies the network"
    ]
    with pytest.raises(MachineError, match="Darwin has no seccomp"):
        require(found, environment={protections.UNPROTECTED: "yes"})


def test_what_is_not_denied_is_found_by_trying():
    found = protections.measure(without=("seccomp",))
    assert "network" not in found.denied and not found.sufficient
    found = protections.measure(without=("landlock",))
    assert "reading" not in found.denied and "network" in found.denied
    found = protections.measure(without=("environment",))
    # The supervisor's own environment is empty already: this is a second lock on that door.
    assert found.sufficient


@pytest.mark.parametrize(
    ("result", "expected", "equal"),
    [
        (1, 1, True), (True, 1, True), (1.0, 1, True), (2, 1, False), ("1", 1, False),
        (0.1 + 0.2, 0.3, True), (0.30001, 0.3, False), (float("nan"), float("nan"), True),
        (float("inf"), float("inf"), True), (float("inf"), float("-inf"), False),
        (10**400, 10**400, True), (10**400, 10**400 + 1, False), (10**400, 1.0, False),
        (1 + 2j, 1 + 2j, True), (None, None, True), (None, 0, False),
        ("a", "a", True), (b"a", b"a", True), (b"a", "a", False), ([1, [2]], [1, [2]], True),
        ([1], [1, 2], False), ((1,), (1,), True), ((1,), [1], False), ([1], (1,), False),
        ({1, 2}, {2, 1}, True), ({1}, {1, 2}, False), ({1, 2}, {1, 3}, False),
        (frozenset({1}), {1}, True), ({"a": 1.0}, {"a": 1}, True), ({"a": 1}, {"b": 1}, False),
        ({1: "a"}, {"1": "a"}, False), ({(1, 2): {3}}, {(1, 2): {3}}, True), ({}, {}, True),
        ([], (), False), ({}, set(), False), (set(), [], False), ("", None, False),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_results_are_compared_as_python_would(result, expected, equal):
    form = loads(dumps(encode(result)))
    assert same(form, expected, tolerance=1e-9, sequences=False) == equal
    assert same(encode(10**5000), 10**5000, tolerance=1e-9, sequences=False)
    back = decode(form)
    assert back == result or result != result or isinstance(result, float)


def test_a_tuple_is_a_list_where_json_could_not_say_so():
    assert same(encode((1, (2,))), [1, [2]], tolerance=0, sequences=True)
    assert same(0.1 + 0.2, 0.3, tolerance=0, sequences=True) is False


def test_code_is_found_in_an_answer():
    assert code_of("```python\na = 1\n```").code == "a = 1\n"
    assert code_of("~~~py\na = 1\n~~~").code == "a = 1\n"
    assert code_of("````python\n```\nx\n```\n````").code == "```\nx\n```\n"
    assert code_of("```bash\nls\n```") is None
    assert code_of("a = 1").fenced is False
    assert assembled("x = 1", "", "f") == "x = 1"
    assert assembled("def f(): return 1", "def f():\n    '''Doc.'''\n", "f").count("def f") == 2
