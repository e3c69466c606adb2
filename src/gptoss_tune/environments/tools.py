"""Tools as they are called: arguments checked against their schema, calls ended at their time.

What a model writes may be anything and what a tool does may take for ever, so a call never raises:
it has a result, and says whose mistake it was. A tool runs in a thread of its own (``bounded``),
and one that is late does not keep the run from its end. A process for each call was the
alternative: a tool could not change what its environment holds.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from gptoss_tune.display import one_line
from gptoss_tune.environments.bounded import Bounded, Call, Failure, reason
from gptoss_tune.environments.environment import Tool
from gptoss_tune.errors import DataError
from gptoss_tune.files import strict_json
from gptoss_tune.grading.bounded.worker import JobDied, OutOfTime, worker
from gptoss_tune.grading.code.pool import processors
from gptoss_tune.grading.reading.settings import require
from gptoss_tune.harmony.fields import MOST_NESTED, nested

PARALLEL: Final = 32
"""Calls at a time; one for each processor where code of the model is among them."""
LONGEST_RESULT: Final = 100_000
"""Characters of a result; what is longer is an error of the tool."""
LONGEST_ARGUMENTS: Final = 100_000
"""Characters of a call's arguments."""
_SECONDS_TO_CHECK: Final = 2.0


@dataclass(frozen=True)
class Result:
    """What came of one piece of work.

    Attributes:
        value: What it returned.
        failure: Why there is none: it raised, or took too long; ``None``: there is one.
        error: What it raised, where that is known.
    """

    value: Any = None
    failure: str | None = None
    error: Exception | None = None


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
    bounded: Bounded,
    work: Sequence[Callable[[], Any]],
    seconds: float,
    waiting: Callable[[], None] = lambda: None,
    *,
    of_own_end: Sequence[bool] = (),
) -> list[Result]:
    """Do pieces of work in threads, each within its seconds, and return what came of them.

    Args:
        bounded: Remembers what never ended.
        work: Functions without arguments.
        seconds: For each, from its start.
        waiting: Called while they run; what it raises ends the waiting.
        of_own_end: Which of them end by themselves: they hold processes that an exception would
            leave behind, and need a processor each.
    """
    ends = [*of_own_end] or [False] * len(work)
    calls = [
        Call(partial(_caught, each), seconds, interrupt=not own)
        for each, own in zip(work, ends, strict=True)
    ]
    found = bounded.run(calls, processors() if any(ends) else PARALLEL, waiting)
    return [Result(failure=one.reason) if isinstance(one, Failure) else one for one in found]


def _caught(work: Callable[[], Any]) -> Result:
    try:
        return Result(value=work())
    except Exception as error:
        return Result(error=error, failure=reason(error))


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
    if not isinstance(tool.parameters, Mapping | None):
        got = type(tool.parameters).__name__
        return (
            f"gave the tool {tool.name!r} with {got} as parameters; expected a JSON schema or None"
        )
    if not callable(tool.run) or inspect.iscoroutinefunction(tool.run):
        return f"gave the tool {tool.name!r}, whose run is no plain function"
    return None
