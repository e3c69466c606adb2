"""One episode while it is played: what was said, what is to come, and why it ended.

The prompt of a next turn is the ids so far, as they were drawn, and behind them the ids of the
tool's message and ``<|start|>assistant``. Only where a user speaks again is it put together anew,
from the ids of the messages that stay.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gptoss_tune.environments.environment import (
    Environment,
    EpisodeEnd,
    Outcome,
    Task,
    ToolUse,
)
from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.format_checks import format_faults
from gptoss_tune.evaluate.parse import Answer, read_answer
from gptoss_tune.grading.answer import Call, Given
from gptoss_tune.harmony.conversation import CHANNELS, Conversation, Header, Message
from gptoss_tune.harmony.fields import shown
from gptoss_tune.harmony.formats.prompt import read_prompt
from gptoss_tune.harmony.reading import Notes
from gptoss_tune.harmony.render import Renderer
from gptoss_tune.harmony.vocabulary import END, RETURN
from gptoss_tune.rollout.calls import Asked, Offered, can_be_answered, read_call
from gptoss_tune.rollout.episode import EpisodeSample
from gptoss_tune.rollout.sampler import Request, Sampled
from gptoss_tune.rollout.samples import (
    SampleInProgress,
    channel_numbers,
    channel_of,
    messages_of,
)


class EpisodeInProgress:
    """One episode of a task.

    Attributes:
        task: What is played.
        index: Its place in the group.
        seed: Its own.
        environment: Its own; ``None`` until it is made.
        ended: Why it ended; ``None``: it goes on.
        error: What the environment raised.
        call: That waits for its result.
        final: An answer that the environment may reply to.
        messages: All of it for people.
        version: Of the weights that played it; ``None`` until something was sampled.
        seconds: How long it took.
    """

    def __init__(self, task: Task, index: int, seed: int, renderer: Renderer) -> None:
        """Prepare; nothing is asked yet."""
        self.task = task
        self.index = index
        self.seed = seed
        self.environment: Environment | None = None
        self.ended: EpisodeEnd | None = None
        self.error: str | None = None
        self.call: Asked | None = None
        self.final: Given | None = None
        self.messages: list[dict[str, str | None]] = []
        self.version: int | None = None
        self.seconds = 0.0
        self._renderer = renderer
        self._offered: Mapping[str, Offered] = {}
        self._answers: list[Answer] = []
        self._uses: list[ToolUse] = []
        self._faults: list[str] = []
        self._pieces: list[tuple[str | None, list[int]]] = []
        self._done: list[EpisodeSample] = []
        self._sample = SampleInProgress(())
        self._room = 0

    def begin(self, conversation: Conversation, offered: Mapping[str, Offered]) -> None:
        """Take what is asked, and the tools that the model is told of.

        Raises:
            DataError: It cannot be rendered.
        """
        self._offered = offered
        self._pieces = list(self._renderer.prompt_messages(conversation))
        if conversation.instructions is not None:
            self._tell("developer", None, None, conversation.instructions)
        for message in conversation.messages:
            header = message.header
            self._tell(header.role, header.channel, header.recipient, message.text)
        self._ask()

    def fail(self, why: str) -> None:
        """End it: the environment raised, or gave what cannot be used."""
        self.ended, self.error = "error", why
        self._faults.append(f"environment: {why}")

    @property
    def turns(self) -> int:
        """How many answers there are."""
        return len(self._answers)

    def request(self, max_new_tokens: int, max_length: int) -> Request | None:
        """Return what to sample next; ``None`` where no room is left, which ends it."""
        left = max_length - len(self._sample.ids)
        if left < 1:
            self.ended = "tokens"
            return None
        self._room = left
        told = f"{self.seed}:{self.turns}".encode()
        digest = hashlib.blake2b(told, digest_size=8).digest()
        seed = int.from_bytes(digest, "little") >> 1
        return Request(tuple(self._sample.ids), min(max_new_tokens, left), seed)

    def take(self, sampled: Sampled) -> None:
        """Read an answer; it ends the episode, calls a tool, or is a final one."""
        vocabulary = self._renderer.vocabulary
        answer = read_answer(sampled.token_ids, vocabulary.encoding)
        self._answers.append(answer)
        self._sample.add_answer(sampled, channel_numbers(sampled.token_ids, vocabulary))
        opening = self._renderer.opening
        for number, ids in enumerate(messages_of(sampled.token_ids)):
            whole = [*opening, *ids] if number == 0 else ids
            self._pieces.append((channel_of(ids, vocabulary), whole))
        for said in answer.messages:
            self._tell("assistant", said.channel, said.recipient, said.content)
        self._faults += format_faults(answer, frozenset(self._offered))
        if answer.ended == "length":
            self.ended = "tokens" if len(sampled.token_ids) >= self._room else "length"
        elif answer.faults or not _is_whole(answer):
            self.ended = "format"
        elif answer.ended == "call":
            self.call = read_call(answer.messages[-1], self._offered)
        else:
            self.final = answer.given()

    def answer_call(self, use: ToolUse, *, goes_on: bool) -> None:
        """Take the result of the call that waits.

        Args:
            use: What came of it.
            goes_on: Whether the model is to go on with it.
        """
        asked, self.call = self.call, None
        assert asked is not None
        if asked.answers:
            self.ended = "answer"
        elif not goes_on:
            self.ended = "turns"
        else:
            try:
                ids = self._renderer.message_ids(asked.message(use), "the result")
            except DataError as error:
                mistake = f"the tool failed: {error}"
                use = ToolUse(use.call, f"Error: {mistake}", mistake)
                ids = self._renderer.message_ids(asked.message(use), "the result")
            self._pieces.append((asked.channel, ids))
            self._sample.add_context([*ids, *self._renderer.opening])
        self._uses.append(use)
        if not asked.answers:
            self._tell("tool", asked.channel, "assistant", use.result, asked.recipient)

    def go_on(self, text: str) -> None:
        """Let the user speak again: what was thought goes, and a next sample begins.

        Raises:
            DataError: The text cannot be tokenised.
        """
        user = self._renderer.message_ids(Message(Header("user"), text, 0.0), "reply()")
        self._done.append(self._sample.finished())
        kept = [(channel, list(ids)) for channel, ids in self._pieces if channel != "analysis"]
        if kept[-1][1][-1] == RETURN:
            kept[-1][1][-1] = END
        self._pieces = [*kept, (None, user)]
        self.final = None
        self._tell("user", None, None, text)
        self._ask()

    def outcome(self, longest: int) -> Outcome:
        """Return the episode as a reward sees it.

        Args:
            longest: Tokens that one answer may have.
        """
        given = [answer.given() for answer in self._answers]
        finals = [one.final for one in given if one.final is not None]
        calls: list[Call] = [call for one in given for call in one.calls]
        thoughts = [one.analysis for one in given if one.analysis]
        return Outcome(
            row=copy.deepcopy(dict(self.task.row)),  # a reward may change it
            given=Given(finals[-1] if finals else None, tuple(calls), "\n\n".join(thoughts)),
            answers=tuple(given),
            uses=tuple(self._uses),
            ended=self.ended or "answer",
            faults=tuple(self._faults),
            tokens=sum(len(answer.token_ids) for answer in self._answers),
            longest=longest,
        )

    def samples(self) -> tuple[EpisodeSample, ...]:
        """Return what is trained of it, in order; nothing where nothing was sampled."""
        last = (self._sample.finished(),) if self._sample.answered else ()
        return (*self._done, *last)

    def _ask(self) -> None:
        ids = [token for _, ids in self._pieces for token in ids]
        self._sample = SampleInProgress([*ids, *self._renderer.opening])

    def _tell(
        self,
        role: str,
        channel: str | None,
        recipient: str | None,
        content: str,
        name: str | None = None,
    ) -> None:
        told: dict[str, Any] = {"role": role, "channel": channel, "recipient": recipient}
        told["content"] = content
        if name is not None:
            told["name"] = name
        self.messages.append(told)


def _is_whole(answer: Answer) -> bool:
    """Whether an answer ends a turn or calls a tool as a server would read it."""
    said = answer.messages
    if not said or any(one.channel not in CHANNELS for one in said):
        return False
    if any(one.recipient is not None or one.channel == "final" for one in said[:-1]):
        return False
    last = said[-1]
    if answer.ended == "call":
        return can_be_answered(last)
    return answer.ended == "return" and last.recipient is None and last.channel == "final"


def conversation_of(
    conversation: Conversation, asked: Sequence[Mapping[str, Any]] | None
) -> Conversation:
    """Return a task's conversation with the messages of its environment.

    Args:
        conversation: Of the task.
        asked: What ``reset`` returned.

    Raises:
        DataError: There is nothing to ask with.
    """
    found = replace(
        conversation,
        messages=list(conversation.messages),
        namespaces=dict(conversation.namespaces),
        notes=Notes(),
    )
    if asked is None:
        if not found.messages:
            raise DataError(
                f"{conversation.source}: the row asks nothing and reset() returned None; return "
                "messages, or give the row a prompt"
            )
        return found
    listed = list(asked) if isinstance(asked, Sequence) and not isinstance(asked, str) else None
    if listed is None or not all(isinstance(message, Mapping) for message in listed):
        raise DataError(
            f"{conversation.source}: reset() returned {shown(asked)}; expected a list of messages "
            "with role and content, or None for the row's own"
        )
    read = read_prompt({"messages": [dict(m) for m in listed]}, conversation.source)
    found.messages = read.messages
    found.instructions = found.instructions if read.instructions is None else read.instructions
    return found
