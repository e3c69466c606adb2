r"""The keys of a row that test code, in one of three styles.

- ``stdio_cases``: ``[{"input": "3 4\n", "output": "7\n"}]``, for programs.
- ``function_cases``: ``[{"args": [3, 4], "expected": 7}]``, for the function ``entry_point``; with
  ``kwargs``, with ``"raises": "ValueError"`` instead of ``expected``, or in Python's own notation,
  ``{"call": "add((1, 2), k={3})", "returns": "(4, 5)"}``.
- ``test`` (Python, as in HumanEval) or ``test_list`` (a list of statements, as in MBPP, with
  ``test_setup_code`` and ``test_imports``).

Beside them ``entry_point``, ``code_prefix`` (or a ``prompt`` that is Python and defines
``entry_point``), ``timeout_s`` and ``memory_mib``. A suite's grader gives the last two for all its
rows, and ``tolerance`` and ``in_place``.
"""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections.abc import Mapping
from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.grading.code.cases import Asserts, Call, Calls, Program, Programs
from gptoss_tune.grading.code.inside.wire import NotPlainError, dumps, encode
from gptoss_tune.grading.code.protection import require
from gptoss_tune.grading.code.sandbox import Limits, PythonTests
from gptoss_tune.grading.code.task import CodeTask
from gptoss_tune.harmony.fields import shown, take_text

SETTINGS: Final = ("timeout_s", "memory_mib", "tolerance", "in_place")
STYLES: Final = ("stdio_cases", "function_cases", "test", "test_list")
SHORTEST_TIMEOUT_S, LONGEST_TIMEOUT_S = 0.1, 600.0
SMALLEST_MEMORY_MIB, LARGEST_MEMORY_MIB = 64, 65_536
_USUAL_TOLERANCE: Final = 1e-9


def read_task(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> CodeTask:
    """Return what a row's code is to pass.

    Raises:
        DataError: The row has no tests, tests of several styles, or some that cannot be used.
        MachineError: This machine does not hold back code of a model.
    """
    require()
    styles = [name for name in STYLES if row.get(name) is not None]
    if len(styles) != 1:
        got = " and ".join(styles) or "none"
        raise DataError(f"{source}: grader code needs one of {', '.join(STYLES)}; got {got}")
    style, entry_point = styles[0], _name(row.get("entry_point"), source)
    prefix = _prefix(row, entry_point, source)
    limits = Limits(
        timeout_s=_number(
            row, settings, source, "timeout_s", 10.0, (SHORTEST_TIMEOUT_S, LONGEST_TIMEOUT_S)
        ),
        memory_mib=int(
            _number(
                *(row, settings, source, "memory_mib", 512),
                (SMALLEST_MEMORY_MIB, LARGEST_MEMORY_MIB),
            )
        ),
    )
    if style == "stdio_cases":
        tests: Programs | Calls | Asserts = Programs(
            tuple(_program(case, at) for case, at in _cases(row[style], source, style)),
            None if settings.get("tolerance") is None else _tolerance(settings, source),
        )
    elif style == "function_cases":
        named = [_call(case, entry_point, at) for case, at in _cases(row[style], source, style)]
        entry_point = entry_point or named[0][0]
        tests = Calls(tuple(call for _, call in named), _tolerance(settings, source))
    else:
        tests = _asserts(row, style, entry_point, prefix, settings, source)
    return CodeTask(tests, entry_point, prefix, limits)


def _asserts(
    row: dict[str, Any],
    style: str,
    entry_point: str | None,
    prefix: str,
    settings: Mapping[str, Any],
    source: str,
) -> Asserts:
    in_place = settings.get("in_place", False)
    if not isinstance(in_place, bool):
        raise DataError(f"{source}: in_place is {shown(in_place)}; expected true or false")
    parts = [row[style]]
    if style == "test_list":
        imports = row.get("test_imports") or []
        setup = row.get("test_setup_code") or ""
        if not isinstance(row[style], list) or not isinstance(imports, list):
            raise DataError(f"{source}: test_list and test_imports are to be lists of statements")
        parts = [*imports, setup, *row[style]]
    text = "\n".join(take_text(part, source, style) for part in parts)
    tree = _parsed(text, source, style)
    asserting = any(
        isinstance(node, (ast.Assert, ast.Raise))
        or (isinstance(node, ast.Attribute) and node.attr.startswith("assert"))
        for node in ast.walk(tree)
    )
    if not asserting:
        raise DataError(f"{source}: {style} asserts nothing; every answer would pass")
    check = _left_to_be_called(tree)
    if check and entry_point is None:
        raise DataError(f"{source}: {style} defines check(candidate); name the entry_point")
    return Asserts(PythonTests(text, prefix, entry_point, check, in_place))


def _left_to_be_called(tree: ast.Module) -> bool:
    """Return whether tests define ``check`` at the top and never call it there."""
    defined = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    calls = (node for node in tree.body if isinstance(node, ast.Expr))
    called = any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check"
        for call in calls
        for node in ast.walk(call)
    )
    return defined and not called


def _program(case: dict[str, Any], at: str) -> Program:
    _known(case, ("input", "output"), at)
    output = take_text(case.get("output"), at, "output")
    if not output.strip():
        raise DataError(f"{at}: output is empty; a program that prints nothing would pass")
    return Program(take_text(case.get("input", ""), at, "input"), output)


def _call(case: dict[str, Any], entry_point: str | None, at: str) -> tuple[str, Call]:
    """Return the function's name and the case."""
    written = "call" in case
    result = "returns" if written else "expected"
    known = ("call", "returns", "raises") if written else ("args", "kwargs", "expected", "raises")
    _known(case, known, at)
    if (result in case) == ("raises" in case):
        raise DataError(f"{at}: expected one of {result} and raises")
    raises = _name(case.get("raises"), at)
    name, args, named = (_written if written else _as_json)(case, entry_point, at)
    expected = None
    if raises is None:
        value = _literal(case[result], at, result) if written else case[result]
        expected = _encoded(value, at, result)
    form = {
        "name": name,
        "args": [json.loads(_encoded(value, at, "args")) for value in args],
        "kwargs": {key: json.loads(_encoded(value, at, key)) for key, value in named.items()},
    }
    texts = [*map(repr, args), *(f"{key}={value!r}" for key, value in named.items())]
    spelled = f"{name}({', '.join(texts)})"
    spelled = spelled if len(spelled) <= 80 else f"{spelled[:76]}...)"
    return name, Call(json.dumps(form), spelled, expected, raises, sequences=not written)


def _as_json(
    case: dict[str, Any], entry_point: str | None, at: str
) -> tuple[str, list[Any], dict[str, Any]]:
    if entry_point is None:
        raise DataError(f"{at}: the row has no entry_point, the function to call")
    args, named = case.get("args", []), case.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(named, dict):
        raise DataError(f"{at}: args is to be a list, and kwargs an object")
    return entry_point, args, named


def _written(
    case: dict[str, Any], entry_point: str | None, at: str
) -> tuple[str, list[Any], dict[str, Any]]:
    text = take_text(case["call"], at, "call")
    body = _parsed(text, at, "call").body
    node = body[0].value if len(body) == 1 and isinstance(body[0], ast.Expr) else None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise DataError(f"{at}: call is {shown(text)}; expected a call such as add(1, 2)")
    if entry_point not in (None, node.func.id):
        raise DataError(f"{at}: call is of {node.func.id}, and entry_point is {entry_point}")
    named = {word.arg: word.value for word in node.keywords}
    if None in named:
        raise DataError(f"{at}: call has **; write its arguments out")
    args = [_value(part, at, "call") for part in node.args]
    return node.func.id, args, {str(k): _value(v, at, "call") for k, v in named.items()}


def _literal(text: Any, at: str, what: str) -> Any:
    body = _parsed(take_text(text, at, what), at, what).body
    if len(body) != 1 or not isinstance(body[0], ast.Expr):
        raise DataError(f"{at}: {what} is {shown(text)}; expected a Python value such as (1, 2)")
    return _value(body[0].value, at, what)


def _value(node: ast.expr, at: str, what: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        text = ast.unparse(node)
        raise DataError(f"{at}: {what} has {shown(text)}; expected values alone") from None


def _encoded(value: Any, at: str, what: str) -> str:
    try:
        return dumps(encode(value)).decode()
    except (NotPlainError, RecursionError) as error:
        raise DataError(f"{at}: {what} cannot be handed over: {error}") from None


def _prefix(row: dict[str, Any], entry_point: str | None, source: str) -> str:
    given = row.get("code_prefix")
    if given is not None:
        text = take_text(given, source, "code_prefix")
        _parsed(text, source, "code_prefix")
        return text
    prompt = row.get("prompt")
    if entry_point is None or not isinstance(prompt, str):
        return ""
    try:
        tree = _parsed(prompt, source, "prompt")
    except DataError:
        return ""  # a question in words, as most are
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return prompt if entry_point in names else ""


def _parsed(text: str, at: str, what: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in a stranger's strings
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{at}: {what} is no Python ({error})") from None


def _cases(value: Any, source: str, style: str) -> list[tuple[dict[str, Any], str]]:
    if not isinstance(value, list):
        raise DataError(f"{source}: {style} is {shown(value)}; expected a list of cases")
    if not value:
        raise DataError(f"{source}: {style} has no cases; every answer would pass")
    for index, case in enumerate(value):
        if not isinstance(case, dict):
            raise DataError(f"{source}: {style}[{index}] is {shown(case)}; expected an object")
    return [(case, f"{source}: {style}[{index}]") for index, case in enumerate(value)]


def _known(case: dict[str, Any], known: tuple[str, ...], at: str) -> None:
    unknown = sorted(case.keys() - set(known))
    if unknown:
        raise DataError(f"{at}: unknown key {shown(unknown[0])}; expected {', '.join(known)}")


def _name(value: Any, source: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.isidentifier():
        raise DataError(f"{source}: entry_point or raises is {shown(value)}; expected a name")
    return value


def _tolerance(settings: Mapping[str, Any], source: str) -> float:
    return _number({}, settings, source, "tolerance", _USUAL_TOLERANCE, (0.0, 1.0))


def _number(
    row: Mapping[str, Any],
    settings: Mapping[str, Any],
    source: str,
    what: str,
    usual: float,
    bounds: tuple[float, float],
) -> float:
    """Return a number of the row, else of the grader's settings, else the usual one."""
    value: Any = row.get(what) if row.get(what) is not None else settings.get(what, usual)
    low, high = bounds
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not (low <= value <= high):
        raise DataError(f"{source}: {what} is {shown(value)}; expected {low:g} to {high:g}")
    return float(value)
