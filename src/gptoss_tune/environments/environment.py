"""What an environment is: one object for each episode, with three methods.

A class of the user's own is three methods and no base class::

    class Shop:
        def reset(self, row, seed):
            self.prices = row["prices"]
            return [{"role": "user", "content": "What does a pear cost?"}]

        def tools(self):
            return [Tool("price", "The price of a fruit.", SCHEMA, self.price)]

        def reward(self, outcome):
            return {"answer": float(outcome.final == "3")}

With a fourth, ``reply(given)``, it speaks for a user: text goes on after a final answer, ``None``
ends the episode.

It is called in the process of the run, on the rank that plays the episode, in threads: objects of
several episodes are at work at the same time, and a call that was given up for its time may still
be. It may do what any Python may: it is the user's own code, named on the command line and never by
a recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.harmony.conversation import Conversation

EpisodeEnd = Literal["answer", "length", "turns", "tokens", "time", "format", "error"]
"""Why an episode ended: the model answered, or an answer was cut at its longest; there were too
many turns, or tokens; its time was over; what was said was not harmony; the environment raised."""


@dataclass(frozen=True)
class Task:
    """One row of the data, as an environment is asked to play it.

    Attributes:
        number: Of the row in its split.
        source: ``file:line``.
        row: As its file has it, cleaned.
        conversation: What is asked, with its effort and declared tools; no messages where an
            environment alone knows what to ask.
        dataset: Number of its entry in the recipe's list of data.
    """

    number: int
    source: str
    row: Mapping[str, Any]
    conversation: Conversation
    dataset: int = 0


@dataclass(frozen=True)
class Tool:
    """One tool that the model may call.

    Attributes:
        name: Of the function, without ``functions.``; ``python`` for the built-in tool.
        description: For the model.
        parameters: JSON schema of its arguments; ``None``: it takes none.
        run: Called with the arguments as keywords (the built-in tool: with the code alone);
            returns the text of the result, or what is written as JSON.
        builtin: It is gpt-oss's own tool of that name, announced in the system message.
    """

    name: str
    description: str
    parameters: Mapping[str, Any] | None
    run: Callable[..., Any]
    builtin: bool = False


@dataclass(frozen=True)
class ToolUse:
    """A call that was made, and what came of it.

    Attributes:
        call: As the model wrote it.
        result: Text that the model was shown.
        mistake: What was wrong with the call (unknown tool, arguments that do not fit the schema,
            not JSON), or with the tool (it raised, it took too long); ``None``: nothing.
        by_model: Whether the mistake is the model's.
    """

    call: Call
    result: str
    mistake: str | None = None
    by_model: bool = False


@dataclass(frozen=True)
class Outcome:
    """An episode that is over, as a reward sees it.

    Attributes:
        row: The task's row.
        given: All that the model said: the last final answer, its calls, its thoughts.
        answers: The same, answer by answer.
        uses: The calls that were made, in order.
        ended: Why it ended.
        faults: What was not harmony about it, a line each.
        tokens: How many the model wrote.
        longest: How many it may write in one answer.
    """

    row: Mapping[str, Any]
    given: Given
    answers: tuple[Given, ...]
    uses: tuple[ToolUse, ...]
    ended: EpisodeEnd
    faults: tuple[str, ...] = ()
    tokens: int = 0
    longest: int = 0

    @property
    def final(self) -> str | None:
        """Text of the last message in the final channel; ``None`` without one."""
        return self.given.final


@dataclass(frozen=True)
class Rewards:
    """What an episode earned.

    Attributes:
        total: The weighted sum: what is learnt from.
        components: Each one before its weight.
        failed: Components that raised or hung, with the reason; they count 0.
    """

    total: float
    components: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


class Environment(Protocol):
    """One episode; the class is called without arguments for each."""

    def reset(self, row: Mapping[str, Any], seed: int) -> Sequence[Mapping[str, Any]] | None:
        """Begin; return the messages to ask with (role and content), or None for the row's own.

        Args:
            row: Of the data.
            seed: The episode's own; whatever is drawn is to be drawn from it.
        """
        ...

    def tools(self) -> Sequence[Tool]:
        """Return what may be called, besides what the row declares."""
        ...

    def reward(self, outcome: Outcome) -> float | Mapping[str, float]:
        """Return the reward, or its components by name."""
        ...
