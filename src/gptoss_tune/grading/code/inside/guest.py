"""The process that runs the model's code: as a program, or as a module whose functions are called.

Nothing that it says is believed beyond its being data. It holds no expected result and no test, so
there is nothing in it to read, patch or forge; whatever code does to this interpreter, all that
leaves it is output, and values that someone else compares.
"""

from __future__ import annotations

import atexit
import contextlib
import linecache
import sys
import threading
import traceback
import types
from typing import Any

from gptoss_tune.grading.code.inside import wire

NAME = "answer.py"
"""File name of the code in tracebacks."""
REQUESTS, REPLIES = 3, 4
"""Descriptors of calls to make, and of what came of the code and of them."""
_LONGEST_TEXT = 500


def run_program(source: str) -> int:
    """Run the code as ``python answer.py`` would; return its exit code."""
    module, streams = _module(source, "__main__"), (sys.stdout, sys.stderr)
    code, failure = 0, None
    try:
        exec(compile(source, NAME, "exec"), module.__dict__)
    except SystemExit as end:
        code = _exit_code(end)
    except BaseException as error:
        code, failure = 1, told(error)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if failure is not None:
        wire.write_all(REPLIES, wire.dumps({"failed": failure}))
    return code


def serve_module(source: str) -> int:
    """Run the code as a module, then make the calls that are asked for until there are no more."""
    module = _module(source, "answer")
    try:
        exec(compile(source, NAME, "exec"), module.__dict__)
    except BaseException as error:
        _send({"failed": told(error)})
        return 1
    served = _Served(module.__dict__)
    _send({"names": served.names()})
    lines = wire.Lines(REQUESTS)
    while (line := lines.next()) is not None:
        _send(served.answer(wire.loads(line)))
    return 0


def told(error: BaseException) -> dict[str, Any]:
    """Return what can be said of an exception: its classes, text, and line of the code."""
    try:
        text = str(error.msg if isinstance(error, SyntaxError) else error)[:_LONGEST_TEXT]
    except BaseException:
        text = "(its text cannot be had)"
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == NAME else None
    for frame, number in traceback.walk_tb(error.__traceback__):
        line = number if frame.f_code.co_filename == NAME else line
    classes = [kind.__name__ for kind in type(error).__mro__]
    return {"classes": classes, "text": text.encode(errors="replace").decode(), "line": line}


class _Served:
    """The objects that can be spoken of: the module's names, and what calls gave."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names, self._kept = names, []

    def names(self) -> list[str]:
        return [name for name in self._names if isinstance(name, str)][:10_000]

    def answer(self, request: Any) -> dict[str, Any]:
        """Return what came of one request, and on demand which of its arguments it changed."""
        try:
            args = [wire.decode(form, self._find) for form in request.get("args", ())]
            named = {k: wire.decode(v, self._find) for k, v in request.get("kwargs", {}).items()}
            value = self._done(request, args, named)
            reply: dict[str, Any] = {"value": wire.encode(value, self._keep)}
            if request.get("changed"):
                reply["changed"] = [_form(argument) for argument in args]
            return reply
        except BaseException as error:
            return {"raised": told(error)}

    def _done(self, request: Any, args: list[Any], named: dict[str, Any]) -> Any:
        target = self._names if "name" in request else self._kept
        found = target[request["name"] if "name" in request else request["object"]]
        if "read" in request:
            return getattr(found, request["read"])
        if "items" in request:
            return [item for item, _ in zip(found, range(request["items"]), strict=False)]
        return found(*args, **named) if "args" in request else found

    def _keep(self, value: object) -> int:
        self._kept.append(value)
        return len(self._kept) - 1

    def _find(self, number: int, name: str) -> object:
        return self._kept[number]


def _form(value: Any) -> Any:
    """Return the form of an argument that calls can change; ``None`` for others."""
    if not isinstance(value, (list, dict, set)):
        return None
    try:
        return wire.encode(value)
    except (wire.NotPlainError, RecursionError):
        return None


def _module(source: str, name: str) -> types.ModuleType:
    """Return an empty module for the code, whose lines tracebacks and ``inspect`` can show."""
    module = types.ModuleType(name)
    module.__file__ = NAME
    sys.modules[name] = module
    linecache.cache[NAME] = (len(source), None, source.splitlines(keepends=True), NAME)
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        mode = "w" if number else "r"
        opened = open(number, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        setattr(sys, stream, opened)
        setattr(sys, f"__{stream}__", opened)
    return module


def _exit_code(end: SystemExit) -> int:
    """Return what the interpreter would: a number, 0 for nothing, 1 for a text."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    sys.stderr.write(f"{end.code}\n")
    return 1


def _send(message: dict[str, Any]) -> None:
    try:
        line = wire.dumps(message)
    except (wire.NotPlainError, ValueError, TypeError) as error:
        said = {"classes": [type(error).__name__], "text": str(error), "line": None}
        line = wire.dumps({"raised": said})
    wire.write_all(REPLIES, line)
