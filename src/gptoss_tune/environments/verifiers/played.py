"""An episode of an environment of ``verifiers``: its state, and what its rubric says of it."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from gptoss_tune.environments.environment import Outcome, Tool, ToolUse
from gptoss_tune.environments.verifiers.loop import SharedLoop
from gptoss_tune.grading.answer import Given
from gptoss_tune.recipe.contradictions.rewards import FLOAT


@dataclass(frozen=True)
class Component:
    """One function of a rubric.

    Attributes:
        name: Of the component.
        function: Called with those of the rubric's objects that it names.
        weight: The rubric's own.
        rubric: That has it.
    """

    name: str
    function: Callable[..., Any]
    weight: float
    rubric: Any


class VerifiersEnvironment:
    """One episode of an environment of ``verifiers``; ``wrap`` makes a class for each of them.

    Attributes:
        components: What its ``reward`` gives.
        made_of: Files of the environment that it wraps, and of its rubric.
    """

    components: ClassVar[tuple[str, ...]] = ()
    made_of: ClassVar[tuple[Path, ...]] = ()
    _played: ClassVar[Any] = None
    _client: ClassVar[Any] = None
    _scored: ClassVar[tuple[Component, ...]] = ()
    _plain_tools: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    _loop: ClassVar[SharedLoop] = SharedLoop()

    def __init__(self) -> None:
        """Begin nothing yet."""
        self._state: Any = None
        self._answers = 0

    def reset(self, row: Mapping[str, Any], seed: int) -> Sequence[Mapping[str, Any]] | None:
        """Make the state; return the messages to ask with, or None where they are the row's own.

        Raises:
            ValueError: The row has no prompt.
        """
        if not isinstance(row.get("prompt"), str | list):
            raise ValueError(
                "the row has no prompt; write the environment's own by "
                "gptoss_tune.environments.verifiers.write_rows"
            )
        values = {"answer": "", "example_id": 0, **copy.deepcopy(dict(row))}
        if isinstance(values["prompt"], str):
            values["prompt"] = [{"role": "user", "content": values["prompt"]}]
        asked = copy.deepcopy(values["prompt"])
        self._state = self._finished(lambda: self._begun(values))
        now = [_plain(message) for message in self._state["prompt"]]
        return None if now == [_plain(message) for message in asked] else now

    def tools(self) -> Sequence[Tool]:
        """Return the environment's tools."""
        return [
            Tool(
                tool.name,
                tool.description or "",
                tool.parameters,
                lambda _name=tool.name, **given: self._tool(_name, given),
            )
            for tool in self._played.tool_defs or ()
        ]

    def reward(self, outcome: Outcome) -> Mapping[str, Any]:
        """Return what each function of the rubric gives, and their sum as ``environment``.

        A function that raises has its exception for a value.
        """
        self._finished(lambda: self._over(outcome))
        found: dict[str, Any] = {}
        for each in self._scored:
            try:
                found[each.name] = float(self._score(each))
            except Exception as error:
                found[each.name] = error
        sound = [each for each in self._scored if _is_sound(found[each.name])]
        self._finished(lambda: self._played.rubric.cleanup(self._state))
        return {**found, FLOAT: math.fsum(each.weight * found[each.name] for each in sound)}

    def _finished(self, work: Callable[[], Awaitable[Any]]) -> Any:
        return self._loop.run(work)

    async def _begun(self, values: dict[str, Any]) -> Any:
        state = await self._played.init_state(values, self._client, "", {})
        changed = await self._played.setup_state(state)
        return state if changed is None else changed

    def _tool(self, name: str, given: Mapping[str, Any]) -> str:
        function = self._plain_tools.get(name)
        if function is not None:
            return str(function(**given))
        work = self._finished(lambda: self._played.call_tool(name, dict(given), "0"))
        return str(work.content)

    async def _say(self, given: Given, uses: Sequence[ToolUse]) -> None:
        """Add an answer, and the results of its calls, to the state."""
        kinds, state, number = (
            importlib.import_module("verifiers.types"),
            self._state,
            self._answers,
        )
        self._answers += 1
        calls = [
            kinds.ToolCall(id=f"{number}.{n}", name=use.call.name, arguments=use.call.arguments)
            for n, use in enumerate(uses)
        ]
        answer = kinds.AssistantMessage(
            content=given.final or "",
            reasoning_content=given.analysis or None,
            tool_calls=calls or None,
        )
        step = {
            "prompt": self._so_far(),
            "completion": [answer],
            "response": None,
            "tokens": None,
            "reward": None,
            "advantage": None,
            "is_truncated": False,
            "trajectory_id": state["trajectory_id"],
            "extras": {},
        }
        self._results = [
            kinds.ToolMessage(tool_call_id=f"{number}.{n}", content=use.result)
            for n, use in enumerate(uses)
        ]
        await self._played.add_trajectory_step(state, step)

    _results: Sequence[Any] = ()
    """What was said to the last answer: results of tools, or the user's next message."""

    def _so_far(self) -> list[Any]:
        steps = self._state["trajectory"]
        if not steps:
            return list(self._state["prompt"])
        return [*steps[-1]["prompt"], *steps[-1]["completion"], *self._results]

    async def _over(self, outcome: Outcome) -> None:
        """Bring the state to the end of the episode."""
        uses = iter(outcome.uses)
        for number, given in enumerate(outcome.answers):
            made = list(islice(uses, len(given.calls)))
            if number >= self._answers:
                await self._say(given, made)
        state = self._state
        state["is_completed"] = True
        state["is_truncated"] = outcome.ended in ("length", "tokens", "time", "turns")
        await self._played.cleanup(state)

    def _score(self, each: Component) -> Any:
        """Call a function of the rubric; a plain one in this thread, where it holds up no other."""
        objects = each.rubric.score_objects(self._state)
        parameters = inspect.signature(each.function).parameters
        if not any(one.kind == one.VAR_KEYWORD for one in parameters.values()):
            objects = {name: value for name, value in objects.items() if name in parameters}
        if inspect.iscoroutinefunction(each.function):
            return self._finished(lambda: each.function(**objects))
        found = each.function(**objects)
        return self._finished(lambda: found) if inspect.isawaitable(found) else found


class WithUser(VerifiersEnvironment):
    """An environment that answers the model as a user does."""

    def reply(self, given: Given) -> str | None:
        """Return what the user says to an answer; ``None``: the episode is over."""
        return self._finished(lambda: self._answered(given))

    async def _answered(self, given: Given) -> str | None:
        await self._say(given, ())
        if await self._played.is_completed(self._state):
            return None
        asked = self._so_far()
        said = await self._played.env_response(asked, self._state)
        if self._state.get("final_env_response") is not None or not said:
            return None
        utils = importlib.import_module("verifiers.utils.message_utils")
        said = utils.maybe_normalize_messages(said, field_name="env_response")
        other = next((message.role for message in said if message.role != "user"), None)
        if other is not None:
            raise ValueError(f"env_response gave a message of role {other!r}; expected 'user'")
        self._results = said
        return "\n\n".join(_text(message.content) for message in said)


def _is_sound(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _plain(message: Any) -> dict[str, Any]:
    if isinstance(message, Mapping):
        return {"role": message.get("role"), "content": _text(message.get("content"))}
    return {"role": message.role, "content": _text(message.content)}


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    parts = [part if isinstance(part, Mapping) else vars(part) for part in content]
    if any(part.get("type") != "text" for part in parts):
        raise ValueError("a message holds more than text")
    return "".join(str(part["text"]) for part in parts)
