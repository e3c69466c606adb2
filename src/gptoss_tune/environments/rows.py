"""The environment ``rows``: tools that a row declares, with results that the row holds.

::

    {"messages": [{"role": "user", "content": "What do a pear and a plum cost?"}],
     "tools": [{"name": "price", "parameters": {...}}],
     "tool_results": [{"name": "price", "arguments": {"item": "pear"}, "result": "3"},
                      {"name": "price", "arguments": {"item": "plum"}, "result": {"cents": 40}}],
     "answer": "3 and 0.40"}

So a task with tools is a data file. A call is answered by the first entry whose name and arguments
it has, compared as the grader ``calls`` compares, ``match`` included; an entry without
``arguments`` answers whatever they are. A call that no entry knows gets an error, and is the
model's mistake. A row that declares tools and has no results asks for the call itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from gptoss_tune.environments.environment import Outcome, Tool
from gptoss_tune.environments.tools import as_text
from gptoss_tune.errors import DataError
from gptoss_tune.grading.answer import Call
from gptoss_tune.grading.calls import ExpectedCall, read_expected_call
from gptoss_tune.harmony.conversation import Conversation
from gptoss_tune.harmony.fields import shown, take_listed
from gptoss_tune.harmony.reading import AS_IT_STANDS, ReadSettings
from gptoss_tune.harmony.tools import take_tools

KEY: Final = "tool_results"
"""Of a row."""
_MOST: Final = 10_000


class UnknownCall(ValueError):
    """A call that the row has no result for; the model could have known."""


@dataclass(frozen=True)
class Scripted:
    """One result, and the call that it answers."""

    call: ExpectedCall
    result: str


def read_script(
    row: Mapping[str, Any],
    source: str,
    reading: ReadSettings = AS_IT_STANDS,
    declared: Sequence[str] | None = None,
) -> list[Scripted] | None:
    """Return the results that a row holds for its tools; ``None`` where it holds none.

    Args:
        row: As its file has it.
        source: Its place, for messages.
        reading: How rows are read.
        declared: Names of the tools that the row declares; ``None``: they are not looked at.

    Raises:
        DataError: They cannot be used, or answer a tool that is not declared.
    """
    if row.get(KEY) is None:
        return None
    listed = take_listed(row[KEY], source, KEY)
    if not isinstance(listed, list) or len(listed) > _MOST:
        raise DataError(
            f"{source}: {KEY} is {shown(listed)}; expected a list of at most {_MOST:,} objects "
            'like {"name": "price", "arguments": {"item": "pear"}, "result": "3"}'
        )
    script = [_scripted(entry, source, f"{KEY}[{n}]", reading) for n, entry in enumerate(listed)]
    for number, scripted in enumerate(script):
        if declared is not None and scripted.call.name not in declared:
            known = ", ".join(declared) or "none"
            raise DataError(
                f"{source}: {KEY}[{number}] answers the tool {scripted.call.name!r}, which the row "
                f"does not declare (declared: {known}); add it to the row's tools, or remove it"
            )
    return script


def _scripted(entry: Any, source: str, where: str, reading: ReadSettings) -> Scripted:
    if not isinstance(entry, dict) or "result" not in entry:
        raise DataError(
            f'{source}: {where} is {shown(entry)}; expected an object with "name", "result" and '
            'the "arguments" that it answers'
        )
    call = {key: value for key, value in entry.items() if key != "result"}
    call["name"] = reading.tool_name(entry.get("name"))
    expected = read_expected_call(call, source, where)
    if call.get("arguments") is None and call.get("match") is None:
        expected = ExpectedCall(expected.name, None)
    try:
        return Scripted(expected, as_text(entry["result"]))
    except ValueError as error:
        raise DataError(f"{source}: {where}.result cannot be used: {error}") from None


class RowTools:
    """Answers calls with what the row says; its rewards are those of the recipe alone."""

    def __init__(self, reading: ReadSettings = AS_IT_STANDS) -> None:
        """Read rows as the recipe says."""
        self._reading = reading
        self._names: list[str] = []
        self._script: list[Scripted] | None = None

    def reset(self, row: Mapping[str, Any], seed: int) -> Sequence[Mapping[str, Any]] | None:
        """Take the row's results; what is asked stands in the row too."""
        self._script = read_script(row, "the row", self._reading)
        conversation = Conversation("the row", reading=self._reading)
        take_tools(dict(row), conversation)
        functions = conversation.namespaces.get("functions", {"tools": []})
        named = [tool["name"] for tool in functions["tools"]]
        named += [scripted.call.name for scripted in self._script or ()]
        self._names = list(dict.fromkeys(named))
        return None

    def tools(self) -> Sequence[Tool]:
        """Return what answers the declared tools; nothing does where the row holds no results."""
        if self._script is None:
            return []
        return [Tool(name, "", None, partial(self._answer, name)) for name in self._names]

    def reward(self, outcome: Outcome) -> float | Mapping[str, float]:
        """Return no component of its own."""
        return {}

    def _answer(self, called: str, /, **arguments: Any) -> str:
        call = Call(called, json.dumps(arguments, ensure_ascii=False))
        for scripted in self._script or ():
            if scripted.call.differs(call) is None:
                return scripted.result
        raise UnknownCall("there is no result for these arguments")
