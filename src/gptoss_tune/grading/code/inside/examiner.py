"""The process that runs the tests: none of the model's code is in it, only what calls to it gave.

A test's ``candidate(3)`` is a message to the guest, and what comes back is plain data of Python's
own types: their ``==`` is Python's. An instance of the code's own class stays with the guest; a
``Remote`` stands for it, whose attributes and calls are messages too, and which equals no data.

Names that a test uses and does not define come from the row's own prefix, then from Python
(builtins, modules of the standard library), and from the code last: an answer that defines its own
``set``, ``abs`` or ``math`` changes nothing here.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import io
import linecache
import sys
import types
import unittest
from typing import Any

from gptoss_tune.grading.code.inside import wire
from gptoss_tune.grading.code.inside.guest import told

NAME = "tests.py"
FROM_GUEST, TO_GUEST, VERDICT = 3, 4, 5
_MOST_ITEMS = 100_000
_LONGEST_SHOWN = 120


class CodeFailedError(BaseException):
    """The code did not get as far as being called, or ended in the middle.

    No ``Exception``, so that a test that expects one does not take it for that.
    """


class _StoppedError(RuntimeError):
    """The code raised StopIteration, which would end a test's ``all(map(...))`` early."""


class CannotTestError(Exception):
    """The tests ask for what cannot pass between the processes."""


class _Guest:
    """The other process.

    Attributes:
        names: That the code defines.
        asked: How often something was asked of it.
        failure: Why it counts as failed, whatever the tests make of it.
        last: What the last call gave.
    """

    def __init__(self, *, in_place: bool) -> None:
        self._lines, self._in_place = wire.Lines(FROM_GUEST), in_place
        self.asked, self.failure, self.last = 0, None, None
        first = self._reply()
        if "failed" in first:
            raise self._failed(first["failed"])
        self.names = {name for name in first.get("names", ()) if isinstance(name, str)}

    def ask(self, request: dict[str, Any], args: tuple[Any, ...] = ()) -> Any:
        """Return what a request gave, in Python's own types; raise what it raised."""
        self.asked += 1
        try:
            wire.write_all(TO_GUEST, wire.dumps({**request, "changed": self._in_place}))
        except BrokenPipeError:
            raise self._failed(_ended()) from None
        reply = self._reply()
        if "raised" in reply:
            raise _raised(reply["raised"])
        try:
            value = wire.decode(reply.get("value"), self._find)
            if self._in_place:
                for argument, form in zip(args, reply.get("changed", ()), strict=False):
                    _change(argument, wire.decode(form, self._find))
        except (wire.NotPlainError, RecursionError, TypeError) as error:
            raise self._failed(told(error)) from None
        self.last = value
        return value

    def encoded(self, value: object) -> Any:
        """Return the form of an argument.

        Raises:
            CannotTestError: It is a function or an object of the tests.
        """
        if isinstance(value, Remote):
            where = value._where
            return {"o": [where["object"], "object"]} if "object" in where else _refused(value)
        try:
            return wire.encode(value, _refused)
        except RecursionError:
            raise CannotTestError("an argument is nested too deeply to be handed over") from None

    def _reply(self) -> dict[str, Any]:
        try:
            line = self._lines.next()
            reply = None if line is None else wire.loads(line)
        except wire.NotPlainError as error:
            raise self._failed(told(error)) from None
        if not isinstance(reply, dict):
            raise self._failed(_ended())
        return reply

    def _failed(self, said: Any) -> CodeFailedError:
        self.failure = said
        return CodeFailedError(said)

    def _find(self, number: int, kind: str) -> Remote:
        return Remote(self, {"object": number}, kind)


class Remote:
    """Stands for a function or an object of the code's own."""

    def __init__(self, guest: _Guest, where: dict[str, Any], kind: str) -> None:
        """Stand for what ``where`` names."""
        self._guest, self._where, self._kind = guest, where, kind

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call it."""
        encoded = [self._guest.encoded(argument) for argument in args]
        keywords = {name: self._guest.encoded(value) for name, value in named.items()}
        return self._guest.ask({**self._where, "args": encoded, "kwargs": keywords}, args)

    def __getattr__(self, name: str) -> Any:
        """Read an attribute of it."""
        return self._guest.ask({**self._where, "read": name})

    def __iter__(self) -> Any:
        """Go through its items, so many at most."""
        return iter(self._guest.ask({**self._where, "items": _MOST_ITEMS}))

    def __len__(self) -> int:
        """Ask for its length."""
        try:
            return self.__getattr__("__len__")()
        except AttributeError as error:  # list() asks everything, and takes this for an answer
            raise TypeError(*error.args) from None

    def __getitem__(self, key: Any) -> Any:
        """Ask for an item."""
        return self.__getattr__("__getitem__")(key)

    def __contains__(self, item: Any) -> bool:
        """Look for an item among those it gives, by Python's own comparison."""
        return any(found == item for found in self)

    def __next__(self) -> Any:
        """Ask an iterator for its next item."""
        try:
            return self.__getattr__("__next__")()
        except _StoppedError:
            raise StopIteration from None

    def __str__(self) -> str:
        """Ask for its text."""
        return str(self.__getattr__("__str__")())

    def __repr__(self) -> str:
        """Say what it is, without asking it."""
        return f"<{self._kind} of the code>"


def examine(given: dict[str, Any]) -> int:
    """Run the tests and write the verdict; return the exit code.

    Args:
        given: ``source`` and ``prefix`` (texts), ``entry_point`` (a name or ``None``), ``check``
            (whether the tests define it and leave it to be called) and ``in_place`` (whether they
            look at what the code changed in its arguments).
    """
    verdict: dict[str, Any]
    guest = None
    try:
        sys.stdout = io.StringIO()
        guest = _Guest(in_place=given["in_place"])
        _run(guest, given)
        if guest.failure is not None:
            raise CodeFailedError(guest.failure)
        if not guest.asked:
            raise CannotTestError("the tests asked nothing of the code")
        verdict = {"passed": True}
    except CodeFailedError as error:
        verdict = {"passed": False, "failed": error.args[0]}
    except CannotTestError as error:
        verdict = {"passed": False, "cannot": str(error)}
    except BaseException as error:
        last = repr(guest.last)[:_LONGEST_SHOWN] if guest is not None and guest.asked else None
        verdict = {"passed": False, "raised": {**_told_of_test(error), "last": last}}
    wire.write_all(VERDICT, wire.dumps(verdict))
    return 0


def _run(guest: _Guest, given: dict[str, Any]) -> None:
    tests, entry_point = given["source"], given["entry_point"]
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    linecache.cache[NAME] = (len(tests), None, tests.splitlines(keepends=True), NAME)
    names = module.__dict__
    exec(compile(given["prefix"], "prefix.py", "exec"), names)
    tree = ast.parse(tests, NAME)
    if entry_point:
        if entry_point not in guest.names:
            raise CodeFailedError(_missing(entry_point))
        names[entry_point] = names["candidate"] = Remote(guest, {"name": entry_point}, entry_point)
    for name in _used(tree):
        names.update(_meaning(name, names, guest))
    exec(compile(tree, NAME, "exec"), names)
    if given["check"]:
        names["check"](names[entry_point])
    cases = [v for v in names.values() if isinstance(v, type) and issubclass(v, unittest.TestCase)]
    for case in cases:
        result = unittest.defaultTestLoader.loadTestsFromTestCase(case).run(unittest.TestResult())
        for test, text in (result.failures + result.errors)[:1]:
            raise AssertionError(f"{test.id()}: {text.strip().splitlines()[-1]}")


def _meaning(name: str, names: dict[str, Any], guest: _Guest) -> dict[str, Any]:
    if name in names or hasattr(builtins, name):
        return {}
    if name in sys.stdlib_module_names:
        return {name: importlib.import_module(name)}
    if name not in guest.names:
        return {}
    return {name: _of_code(guest, name)}


def _of_code(guest: _Guest, name: str) -> Any:
    """Return a name of the code: plain data as it is, all else as what stands for it."""
    value = guest.ask({"name": name})
    return Remote(guest, {"name": name}, name) if isinstance(value, Remote) else value


def _used(tree: ast.Module) -> list[str]:
    """Return the names that tests read."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return sorted({node.id for node in nodes if isinstance(node.ctx, ast.Load)})


def _raised(said: Any) -> BaseException:
    """Return an exception of Python's own like the one that the code raised."""
    classes = [str(name) for name in said.get("classes", ())] if isinstance(said, dict) else []
    text = str(said.get("text")) if classes else "nonsense"
    if {"StopIteration", "StopAsyncIteration"} & set(classes):
        error: BaseException = _StoppedError(f"{classes[0]}: {text}")
    else:
        error = _like(classes, text) or CodeFailedError(said)
    error.of_code = said  # type: ignore[attr-defined]
    return error


def _like(classes: list[str], text: str) -> BaseException | None:
    for name in classes:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text)
            except TypeError:  # such as UnicodeDecodeError, which takes five; its parent takes one
                continue
    return None


def _told_of_test(error: BaseException) -> dict[str, Any]:
    said = told(error)
    trace, line = error.__traceback__, None
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == NAME else line
        trace = trace.tb_next
    source = linecache.cache.get(NAME)
    lines = source[2] if source is not None and len(source) == 4 else []
    shown = lines[line - 1].strip() if line and line <= len(lines) else ""
    return {**said, "test": shown, "of_code": getattr(error, "of_code", None)}


def _change(argument: Any, value: Any) -> None:
    """Change a test's own argument as the code changed its copy."""
    if type(argument) is not type(value):
        return
    if isinstance(argument, list):
        argument[:] = value
    elif isinstance(argument, (dict, set)):
        argument.clear()
        argument.update(value)


def _refused(value: object) -> int:
    raise CannotTestError(f"the tests hand over a {type(value).__name__}, which is no plain data")


def _missing(name: str) -> dict[str, Any]:
    return {"classes": ["NameError"], "text": f"no {name} is defined", "line": None}


def _ended() -> dict[str, Any]:
    return {"classes": ["SystemExit"], "text": "the code ended before it was tested", "line": None}
