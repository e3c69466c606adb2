"""The three ways to test code, each judged outside of the code's process.

- ``Programs``: a program gets a text and its output is compared, here.
- ``Calls``: a function is called with data and its results are compared, here.
- ``Asserts``: Python tests it, in a process of their own (``inside.examiner``).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from gptoss_tune.display import one_line
from gptoss_tune.errors import MachineError
from gptoss_tune.grading.code.compare import same, shown
from gptoss_tune.grading.code.inside.wire import NotPlainError, decode, loads
from gptoss_tune.grading.code.sandbox import Job, Limits, Outcome, PythonTests, run

_LONGEST_NOTE: Final = 300
_LONGEST_TEXT: Final = 80


@dataclass(frozen=True)
class Program:
    """One case of a program: what it reads and what it is to print."""

    input: str
    output: str


@dataclass(frozen=True)
class Programs:
    """Cases of a program.

    Outputs are compared line by line, blanks at the ends of lines and lines at the end left out;
    with a tolerance, words that are numbers within it.
    """

    cases: tuple[Program, ...]
    tolerance: float | None

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        return f"{len(self.cases)} cases of a program"

    def mistake(self, source: str, limits: Limits) -> str | None:
        """Return what is wrong: the program runs on each case, until one is."""
        until = time.monotonic() + limits.timeout_s
        for number, case in enumerate(self.cases, 1):
            left = until - time.monotonic()
            if left <= 0:
                return _note(f"case {number}: not begun, the {limits.timeout_s:g} s are up")
            outcome = confined(Job(source, case.input, limits=replace(limits, timeout_s=left)))
            note = self._wrong(case, outcome, limits)
            if note is not None:
                return _note(f"case {number}: {note}")
        return None

    def _wrong(self, case: Program, outcome: Outcome, limits: Limits) -> str | None:
        bad = ended_badly(outcome, limits)
        if bad is not None:
            return bad
        printed = outcome.stdout.decode(errors="replace")
        got, expected = _lines(printed), _lines(case.output)
        for at, (line, wanted) in enumerate(zip(got, expected, strict=False), 1):
            if not self._same_line(line, wanted):
                return f"line {at} is {_short(line)}; expected {_short(wanted)}"
        if len(got) != len(expected):
            return f"printed {len(got)} lines; expected {len(expected)}"
        return None

    def _same_line(self, line: str, wanted: str) -> bool:
        if line == wanted or self.tolerance is None:
            return line == wanted
        words, others = line.split(), wanted.split()
        return len(words) == len(others) and all(map(self._same_word, words, others))

    def _same_word(self, word: str, wanted: str) -> bool:
        try:
            number, other = float(word), float(wanted)
        except ValueError:
            return word == wanted
        return same(number, other, tolerance=self.tolerance or 0.0, sequences=False)


@dataclass(frozen=True)
class Call:
    """One call of a function and what it is to give.

    Attributes:
        request: The call, for ``inside.guest``, as JSON.
        shown: The call, for people.
        expected: Result in the form of ``inside.wire``, as JSON; ``None`` where it is to raise.
        raises: Class of the exception that it is to raise.
        sequences: Whether a tuple counts as a list.
    """

    request: str
    shown: str
    expected: str | None
    raises: str | None
    sequences: bool


@dataclass(frozen=True)
class Calls:
    """Cases of a function, all made in one process, in order."""

    cases: tuple[Call, ...]
    tolerance: float

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        return f"{len(self.cases)} calls, such as {_short(self.cases[0].shown)}"

    def mistake(self, source: str, limits: Limits) -> str | None:
        """Return what is wrong with what the calls gave."""
        calls = [json.loads(case.request) for case in self.cases]
        outcome = confined(Job(source, calls=calls, limits=limits))
        lines = outcome.replies.split(b"\n")[:-1]
        try:
            replies = [loads(line) for line in lines[: len(self.cases) + 1]]
        except NotPlainError as error:
            return _note(f"its results cannot be read: {error}")
        failure = _failure(replies[:1])
        if failure is not None:
            return _note(failure)
        for number, case in enumerate(self.cases, 1):
            if number >= len(replies):
                bad = ended_badly(outcome, limits) or "the code ended before it gave a result"
                return _note(f"case {number}, {case.shown}: {bad}")
            note = self._wrong(case, replies[number])
            if note is not None:
                return _note(f"case {number}, {case.shown}: {note}")
        return None

    def _wrong(self, case: Call, reply: Any) -> str | None:
        raised = reply.get("raised") if isinstance(reply, dict) else {}
        if raised is not None:
            classes = raised.get("classes", ()) if isinstance(raised, dict) else ()
            if case.raises is not None and case.raises in classes:
                return None
            what = f"raised {told(raised)}"
            return what if case.raises is None else f"{what}; expected {case.raises}"
        form = reply.get("value")
        if case.expected is None:
            return f"gave {shown(form)}; expected {case.raises} to be raised"
        expected = decode(json.loads(case.expected))
        if same(form, expected, tolerance=self.tolerance, sequences=case.sequences):
            return None
        return f"gave {shown(form)}; expected {shown(json.loads(case.expected))}"


@dataclass(frozen=True)
class Asserts:
    """Tests in Python."""

    tests: PythonTests

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        count = self.tests.source.count("assert")
        return f"tests with {count} assertions" + (
            f" of {self.tests.entry_point}" if self.tests.entry_point else ""
        )

    def mistake(self, source: str, limits: Limits) -> str | None:
        """Return what the tests found wrong."""
        outcome = confined(Job(source, tests=self.tests, limits=limits))
        try:
            verdict = loads(outcome.verdict) if outcome.verdict else None
        except NotPlainError:
            verdict = None
        if not isinstance(verdict, dict):
            return _note(ended_badly(outcome, limits) or "the tests ended without a verdict")
        # What the tests' process says counts even where the code's had to be killed behind it.
        if verdict.get("passed") is True and outcome.ended == "exited":
            return None
        if "failed" in verdict and outcome.code is not None and outcome.code < 0:
            return _note(f"its process was ended by {_signal(-outcome.code)}")
        return _note(_told_of_tests(verdict) or ended_badly(outcome, limits) or "failed")


def _note(text: str) -> str:
    """Return a note as one line of bounded length; it quotes what the code may have chosen."""
    note = one_line(text)
    return note if len(note) <= _LONGEST_NOTE else note[: _LONGEST_NOTE - 3] + "..."


def confined(job: Job) -> Outcome:
    """Run a job, or raise that nothing can be run.

    Raises:
        MachineError: The code's process could not be confined.
    """
    outcome = run(job)
    if outcome.ended == "refused":
        raise MachineError(f"the sandbox cannot be set up: {outcome.why}")
    return outcome


def ended_badly(outcome: Outcome, limits: Limits) -> str | None:
    """Return why a run did not end well; ``None`` where it did."""
    if outcome.ended == "timed out":
        return f"timed out after {outcome.seconds:.1f} s"
    if outcome.ended != "exited":
        most = {
            "too much output": f"{limits.output_kib:,} KiB",
            "too much on disk": f"{limits.disk_mib:,} MiB",
            "too many tasks": f"{limits.processes} processes and 64 threads",
        }
        return f"stopped: {outcome.ended} (over {most.get(outcome.ended, 'its limit')})"
    failure = _failure_of(outcome.replies)
    if failure is not None:
        return failure
    if outcome.code is not None and outcome.code < 0:
        return f"its process was ended by {_signal(-outcome.code)}"
    return None if outcome.code == 0 else f"ended with exit code {outcome.code}"


def told(said: Any) -> str:
    """Return an exception that the guest told of: class, text and line."""
    if not isinstance(said, Mapping):
        return "an exception"
    classes = said.get("classes")
    name = classes[0] if isinstance(classes, list) and classes else "an exception"
    text = f"{name}: {said.get('text')}" if said.get("text") else str(name)
    line = said.get("line")
    return f"{text} (line {line})" if isinstance(line, int) else text


def _told_of_tests(verdict: Mapping[str, Any]) -> str | None:
    if "failed" in verdict:
        return told(verdict["failed"])
    if "cannot" in verdict:
        return f"cannot be judged: {verdict['cannot']}"
    raised = verdict.get("raised")
    if not isinstance(raised, Mapping):
        return None
    where = f"{raised.get('test') or 'a test'}: "
    if raised.get("of_code") is not None:
        return f"{where}the code raised {told(raised['of_code'])}"
    classes = raised.get("classes")
    failed = isinstance(classes, list) and "AssertionError" in classes
    what = f"failed {raised.get('text') or ''}".rstrip() if failed else f"raised {told(raised)}"
    last = raised.get("last")
    return f"{where}{what}" + ("" if last is None else f"; the last call gave {last}")


def _failure_of(replies: bytes) -> str | None:
    try:
        return _failure([loads(line) for line in replies.split(b"\n")[:1] if line])
    except NotPlainError:
        return None


def _failure(replies: list[Any]) -> str | None:
    """Return what the code itself raised, before anything was called."""
    first = replies[0] if replies else None
    return told(first["failed"]) if isinstance(first, dict) and "failed" in first else None


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")] if text.strip() else []


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."


def _signal(number: int) -> str:
    names = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV"}
    more = {24: "SIGXCPU", 25: "SIGXFSZ", 31: "SIGSYS", 15: "SIGTERM", 14: "SIGALRM"}
    return {**names, **more}.get(number, f"signal {number}")
