"""Plays episodes: many together, turn by turn.

In each round the sampler is asked once, for one answer of every episode that goes on; then the
calls in these answers are made at the same time, each within its seconds. Episodes that are over
leave the round. What an environment does wrong costs its own episode, and what a model does wrong
its reward.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from gptoss_tune.environments.bounded import Bounded
from gptoss_tune.environments.environment import Environment, Outcome, Rewards, Task, Tool
from gptoss_tune.environments.tools import Result, check_schema, mistake_of_tool, run_bounded
from gptoss_tune.errors import DataError, MachineError
from gptoss_tune.harmony.conversation import BUILTIN_TOOLS, Conversation, add_builtin_tools
from gptoss_tune.harmony.render import Renderer
from gptoss_tune.harmony.tools import add_tools
from gptoss_tune.rollout.calls import CODE, Offered
from gptoss_tune.rollout.episode import Episode
from gptoss_tune.rollout.in_progress import EpisodeInProgress, conversation_of
from gptoss_tune.rollout.sampler import Sampler

RESET_SECONDS: Final = 120.0
"""What an environment may take to begin, or to reply."""


class Judge(Protocol):
    """Judges episodes that are over: ``RewardFunction.judge_many``."""

    def __call__(
        self,
        asked: Sequence[tuple[Environment | None, Task, Outcome]],
        /,
        *,
        waiting: Callable[[], None],
    ) -> Sequence[Rewards]:
        """Return what each earned, in order; ``waiting`` is called often and may raise."""
        ...


@dataclass(frozen=True)
class Limits:
    """What an episode may take.

    Attributes:
        max_new_tokens: Longest answer.
        max_turns: Most answers.
        max_length: Tokens of a sample: of all that the model sees and says.
        tool_seconds: Of one call.
        episode_seconds: From its first answer on; ``None``: no limit. It is looked at between
            answers.
    """

    max_new_tokens: int
    max_turns: int
    max_length: int
    tool_seconds: float
    episode_seconds: float | None = None


class Player:
    """Plays episodes of tasks with one sampler."""

    def __init__(
        self,
        sampler: Sampler,
        renderer: Renderer,
        make: Callable[[], Environment],
        judge: Judge,
        limits: Limits,
    ) -> None:
        """Play with a sampler.

        Args:
            sampler: Samples answers.
            renderer: Renders prompts as training and servers do.
            make: Makes the environment of one episode.
            judge: Judges them.
            limits: What an episode may take.
        """
        self._sampler = sampler
        self._renderer = renderer
        self._make = make
        self._judge = judge
        self._limits = limits
        self._bounded = Bounded()
        self._sound: set[str] = set()

    def play(
        self,
        asked: Sequence[tuple[Task, int, int]],
        *,
        temperature: float,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Episode]:
        """Return an episode for each task, index in its group and seed, in order.

        Args:
            asked: What to play, all of it together.
            temperature: Of the draws; 0 takes the likeliest tokens.
            should_stop: Asked often; what was played is given up then.

        Raises:
            Stopped: ``should_stop`` was true.
            MachineError: The sampler or the sandbox does not work.
        """

        def poll() -> None:
            if should_stop():
                from gptoss_tune.evaluate.generate import Stopped

                raise Stopped

        plays = [EpisodeInProgress(*one, self._renderer) for one in asked]
        self._begin(plays, poll)
        started = time.monotonic()
        active = [play for play in plays if play.ended is None]
        while active:
            poll()
            self._round(active, temperature, should_stop, started)
            self._call(active, started, poll)
            self._reply(active, poll)
            for play in active:
                play.seconds = time.monotonic() - started
            active = [play for play in active if play.ended is None]
        return self._episodes(plays, poll)

    def _begin(self, plays: Sequence[EpisodeInProgress], poll: Callable[[], None]) -> None:
        def begun(play: EpisodeInProgress) -> tuple[Any, list[Any]]:
            play.environment = self._make()
            # Episodes of a group begin in threads at the same time, and it may change what it gets.
            row = copy.deepcopy(dict(play.task.row))
            asked = play.environment.reset(row, play.seed)
            return asked, list(play.environment.tools())

        work = [lambda play=play: begun(play) for play in plays]
        results = run_bounded(self._bounded, work, RESET_SECONDS, poll)
        for play, result in zip(plays, results, strict=True):
            if (why := _failed(result, "reset() or tools()")) is not None:
                play.fail(why)
                continue
            assert result.value is not None
            try:
                conversation = conversation_of(play.task.conversation, result.value[0])
                offered = self._offered(conversation, result.value[1])
                play.begin(conversation, offered)
            except (DataError, TypeError, ValueError) as error:
                play.fail(str(error))

    def _offered(self, conversation: Conversation, tools: Sequence[Any]) -> dict[str, Offered]:
        """Declare an environment's tools to the model; return all that it is told of."""
        run: dict[str, Tool] = {}
        for tool in tools:
            if (wrong := mistake_of_tool(tool)) is not None:
                raise DataError(f"tools() {wrong}")
            name = tool.name if tool.builtin or "." in tool.name else f"functions.{tool.name}"
            if name in run:
                raise DataError(f"tools() gave {name!r} twice; give each tool a name of its own")
            if tool.builtin:
                add_builtin_tools(conversation, [tool.name.split(".")[0]])
            elif f"functions.{tool.name}" not in conversation.recipients():
                _declare(conversation, tool)
            run[name] = tool
        offered: dict[str, Offered] = {}
        for namespace, content in conversation.namespaces.items():
            for declared in content["tools"]:
                self._check_schema(declared.get("parameters"), conversation, declared["name"])
                recipient = f"{namespace}.{declared['name']}"
                offered[recipient] = Offered(declared.get("parameters"), run.get(recipient))
        for builtin in conversation.builtin_tools:
            for name in BUILTIN_TOOLS[builtin]:
                offered[name] = Offered({"type": "object"}, run.get(name))
        if run:
            unanswered = Tool("", "", None, _unanswered)
            offered = {
                name: one if one.tool is not None else Offered(one.parameters, unanswered)
                for name, one in offered.items()
            }
        return offered

    def _check_schema(
        self, parameters: Mapping[str, Any] | None, conversation: Conversation, name: str
    ) -> None:
        key = json.dumps(parameters, sort_keys=True)
        if key not in self._sound:
            check_schema(parameters, conversation.source, name)
            self._sound.add(key)

    def _round(
        self,
        plays: Sequence[EpisodeInProgress],
        temperature: float,
        should_stop: Callable[[], bool],
        started: float,
    ) -> None:
        """Sample one answer of each episode."""
        limits = self._limits
        asked = []
        for play in plays:
            if self._left(started) <= 0:
                play.ended = "time"
                continue
            request = play.request(limits.max_new_tokens, limits.max_length)
            if request is not None:
                asked.append((play, request))
        if not asked:
            return
        found = self._sampler.sample([request for _, request in asked], temperature, should_stop)
        for (play, _), sampled in zip(asked, found, strict=True):
            if play.version not in (None, sampled.version):
                raise MachineError(
                    f"sampler {self._sampler.name}: an episode that weights of version "
                    f"{play.version} began was gone on with by version {sampled.version}; nothing "
                    "but this run may change what the sampler holds"
                )
            play.version = sampled.version
            play.take(sampled)

    def _call(
        self, plays: Sequence[EpisodeInProgress], started: float, poll: Callable[[], None]
    ) -> None:
        """Make the calls of a round, all at the same time."""
        waiting = []
        for play in plays:
            if play.call is not None and self._left(started) <= 0:
                play.ended, play.call = "time", None
            elif play.call is not None:
                waiting.append((play, play.call))
        seconds = min(self._limits.tool_seconds, self._left(started))
        made = [asked for _, asked in waiting if asked.work is not None]
        work = [asked.work for asked in made if asked.work is not None]
        codes = [asked.recipient == CODE for asked in made]
        found = run_bounded(self._bounded, work, seconds, poll, of_own_end=codes)
        results = iter(found)
        for play, asked in waiting:
            use = asked.use(next(results) if asked.work is not None else None)
            play.answer_call(use, goes_on=play.turns < self._limits.max_turns)

    def _reply(self, plays: Sequence[EpisodeInProgress], poll: Callable[[], None]) -> None:
        """Ask environments that speak for a user what it says to a final answer."""
        waiting = []
        for play in plays:
            if play.final is None:
                continue
            reply = getattr(play.environment, "reply", None)
            if reply is None:
                play.ended = "answer"
            else:
                waiting.append((play, lambda reply=reply, given=play.final: reply(given)))
        work = [work for _, work in waiting]
        results = run_bounded(self._bounded, work, RESET_SECONDS, poll)
        for (play, _), result in zip(waiting, results, strict=True):
            if (why := _failed(result, "reply()")) is not None:
                play.fail(why)
            elif result.value is None:
                play.ended = "answer"
            elif not isinstance(result.value, str):
                play.fail(f"reply() gave {type(result.value).__name__}; expected text or None")
            elif play.turns >= self._limits.max_turns:
                play.ended = "turns"
            else:
                try:
                    play.go_on(result.value.encode("utf-8", "replace").decode())
                except DataError as error:
                    play.fail(str(error))

    def _left(self, started: float) -> float:
        """Return the seconds that episodes still have."""
        longest = self._limits.episode_seconds
        return float("inf") if longest is None else longest - (time.monotonic() - started)

    def _episodes(
        self, plays: Sequence[EpisodeInProgress], poll: Callable[[], None]
    ) -> list[Episode]:
        outcomes = [play.outcome(self._limits.max_new_tokens) for play in plays]
        judged = [n for n, play in enumerate(plays) if play.error is None]
        asked = [(plays[n].environment, plays[n].task, outcomes[n]) for n in judged]
        rewards = dict(zip(judged, self._judge(asked, waiting=poll), strict=True))
        return [
            Episode(
                task=play.task.number,
                source=play.task.source,
                index=play.index,
                samples=play.samples(),
                outcome=outcomes[number],
                rewards=rewards.get(number) or Rewards(0.0, {}, {"environment": play.error or ""}),
                messages=tuple(play.messages),
                version=self._sampler.version if play.version is None else play.version,
                seconds=play.seconds,
            )
            for number, play in enumerate(plays)
        ]


def _declare(conversation: Conversation, tool: Tool) -> None:
    declared: dict[str, Any] = {"name": tool.name, "description": tool.description}
    if tool.parameters is not None:
        declared["parameters"] = dict(tool.parameters)
    add_tools(conversation, [declared], "tools()")


def _failed(result: Result, what: str) -> str | None:
    """Return why an environment gave nothing; ``None``: it did."""
    if isinstance(result.error, MachineError):
        raise result.error
    return None if result.failure is None else f"{what}: {result.failure}"


def _unanswered(*_: object, **__: object) -> str:
    raise RuntimeError("nothing answers this tool here")
