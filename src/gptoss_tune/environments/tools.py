"""Tools as they are called: arguments checked against their schema, calls ended at their time.

What a model writes may be anything and what a tool does may take for ever, so a call never raises:
it has a result, and says whose mistake it was. A tool runs in a thread of its own; Python cannot
end a thread, so one that is late is left behind, and does not keep the process from ending. A
process for each call was the alternative: a tool could not change what its environment holds.
"""

from __future__ import annotations

import inspect
import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from gptoss_tune.display import one_line
from gptoss_tune.environments.environment import Tool
from gptoss_tune.errors import DataError
from gptoss_tune.files import strict_json
from gptoss_tune.grading.bounded.worker import JobDied, OutOfTime, worker
from gptoss_tune.grading.reading.settings import require
from gptoss_tune.harmony.fields import MOST_NESTED, nested

PARALLEL: Final = 32
"""Calls at a time."""
LONGEST_RESULT: Final = 100_000
"""Characters of a result; what is longer is an error of the tool."""
LONGEST_ARGUMENTS: Final = 100_000
"""Characters of a call's arguments."""
_SECONDS_TO_CHECK: Final = 2.0
_LONGEST_REASON: Final = 400
_OFTEN: Final = 0.2
"""Seconds after which somebody who waits asks whether it still should."""

_Got = TypeVar("_Got")


@dataclass(frozen=True)
class Result(Generic[_Got]):
    """What came of one piece of work.

    Attributes:
        value: What it returned.
        error: What it raised.
        late: It was not over in time, and goes on unheard.
    """

    value: _Got | None = None
    error: BaseException | None = None
    late: bool = False


@dataclass(frozen=True)
class Checked:
    """The arguments of a call, or what is wrong with them.

    Attributes:
        arguments: By name.
        mistake: What is wrong; ``None``: nothing.
        by_model: Whether the model is to blame.
    """

    arguments: Mapping[str, Any]
    mistake: str | None = None
    by_model: bool = True


def run_bounded(
    work: Sequence[Callable[[], _Got]],
    seconds: Sequence[float],
    *,
    poll: Callable[[], None] = lambda: None,
    parallel: int = PARALLEL,
) -> list[Result[_Got]]:
    """Do pieces of work in threads, each within its seconds, and return what came of them.

    Args:
        work: Functions without arguments.
        seconds: For each, from its start.
        poll: Called while they run; what it raises ends the waiting.
        parallel: How many run at a time; one that is late no longer counts.
    """
    results: list[Result[_Got]] = [Result(late=True)] * len(work)
    done: queue.SimpleQueue[tuple[int, Result[_Got]]] = queue.SimpleQueue()
    waiting = deque(range(len(work)))
    until: dict[int, float] = {}
    while waiting or until:
        poll()
        while waiting and len(until) < parallel:
            number = waiting.popleft()
            arguments = (work[number], number, done)
            thread = threading.Thread(target=_run, args=arguments, daemon=True, name="tool")
            try:
                thread.start()
            except RuntimeError as error:  # no thread is left: too many never came back
                results[number] = Result(error=error)
            else:
                until[number] = time.monotonic() + seconds[number]
        if not until:
            continue
        left = min(until.values()) - time.monotonic()
        try:
            number, result = done.get(timeout=max(0.0, min(left, _OFTEN)))
        except queue.Empty:
            now = time.monotonic()
            until = {number: end for number, end in until.items() if end > now}
            continue
        if until.pop(number, None) is not None:
            results[number] = result
    return results


def _run(
    work: Callable[[], _Got], number: int, done: queue.SimpleQueue[tuple[int, Result[_Got]]]
) -> None:
    try:
        done.put((number, Result(value=work())))
    except BaseException as error:  # a tool's sys.exit() ends its call alone
        done.put((number, Result(error=error)))


def reason(error: BaseException) -> str:
    """Return what an error of someone's code says, in one line of a bounded length."""
    said = one_line(str(error))
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 4]} ..."


def check_schema(parameters: Mapping[str, Any] | None, at: str, name: str) -> None:
    """Refuse a schema that no arguments could be checked against.

    Raises:
        DataError: It is none, refers to other documents, or is nested too deep.
        MachineError: jsonschema is not installed.
    """
    if parameters is None:
        return
    require("jsonschema", "calls", at)
    if not isinstance(parameters, Mapping) or nested(dict(parameters)) > MOST_NESTED:
        raise DataError(
            f"{at}: the parameters of tool {name!r} are no JSON schema of at most {MOST_NESTED} "
            "levels; write an object with type and properties"
        )
    try:
        reply = worker("schema").ask({"schema": dict(parameters)}, _SECONDS_TO_CHECK * 5)
    except (OutOfTime, JobDied):
        reply = {"wrong": "it cannot be checked in time"}
    wrong = reply.get("error") or reply.get("wrong")
    if wrong is not None:
        raise DataError(f"{at}: the parameters of tool {name!r} cannot be used: {wrong}")


def check_arguments(text: str, parameters: Mapping[str, Any] | None, name: str) -> Checked:
    """Return the arguments of a call as the model wrote them, checked.

    They are one JSON object that fits the schema, with no key twice and no key that the schema does
    not name, unless it says that others may be there.

    Args:
        text: As written.
        parameters: JSON schema of the arguments; ``None``: there are none.
        name: Of the tool.
    """
    if len(text) > LONGEST_ARGUMENTS:
        return Checked({}, f"the arguments have over {LONGEST_ARGUMENTS:,} characters")
    try:
        values = strict_json.parse(text.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        return Checked({}, f"the arguments are not JSON: {one_line(str(error))}")
    if not isinstance(values, dict):
        return Checked({}, "the arguments are JSON, but no object")
    unknown = _unknown(values, parameters)
    if unknown is not None:
        return Checked({}, f"{name} takes no argument {unknown[:80]!r}")
    if parameters is None:
        return Checked({})
    try:
        task = {"schema": dict(parameters), "value": values}
        reply = worker("schema").ask(task, _SECONDS_TO_CHECK)
    except (OutOfTime, JobDied):
        return Checked({}, "the arguments could not be checked in time", by_model=False)
    if "error" in reply:
        return Checked({}, f"the arguments could not be checked: {reply['error']}", by_model=False)
    if reply["wrong"] is not None:
        return Checked({}, f"the arguments do not fit: {reply['wrong']}")
    return Checked(values)


def _unknown(values: Mapping[str, Any], parameters: Mapping[str, Any] | None) -> str | None:
    """Return an argument that the declaration does not name; ``None``: there is none."""
    if parameters is None:
        return next(iter(values), None)
    named = parameters.get("properties")
    others = ("additionalProperties", "patternProperties", "oneOf", "anyOf", "allOf", "$ref")
    if not isinstance(named, Mapping) or any(parameters.get(key) for key in others):
        return None
    return next((name for name in values if name not in named), None)


def as_text(value: object) -> str:
    """Return what a tool gave as the text that the model is shown.

    Raises:
        ValueError: It is too long, or cannot be written as JSON.
    """
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"it returned {type(value).__name__}, which is neither text nor JSON ({error})"
        ) from None
    if len(text) > LONGEST_RESULT:
        raise ValueError(f"its result has {len(text):,} characters, over {LONGEST_RESULT:,}")
    # Half a surrogate pair has no token.
    return text.encode("utf-8", "replace").decode()


def mistake_of_tool(tool: object) -> str | None:
    """Return what is wrong with what an environment gave as a tool; ``None``: nothing."""
    if not isinstance(tool, Tool):
        return f"gave {type(tool).__name__}; expected gptoss_tune.environments.Tool"
    if not isinstance(tool.name, str) or not isinstance(tool.description, str):
        return "gave a tool whose name or description is no text"
    if not callable(tool.run) or inspect.iscoroutinefunction(tool.run):
        return f"gave the tool {tool.name!r}, whose run is no plain function"
    return None
