"""A conversation that goes on: questions, answers, and what is taken back of them.

::

    talk = Talk(answerer, sampling=Sampling(temperature=0))
    talk.ask("Hello", lambda delta: print(delta.text, end=""))
    talk.undo()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from gptoss_tune.chat.events import Ends
from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.answering.sampling import Sampling
from gptoss_tune.evaluate.channels import Delta
from gptoss_tune.harmony.conversation import Conversation, Header, Message
from gptoss_tune.harmony.fields import Effort

SOURCE = "the conversation"


class Stream(Protocol):
    """An answer in the making: ``AnswerStream`` in process, ``ServedAnswer`` of a server."""

    def __iter__(self) -> Iterator[Delta]:
        """Yield new text as it comes."""
        ...

    def cut(self) -> list[Delta]:
        """End the answer here; return text that waited for more."""
        ...

    @property
    def messages(self) -> list[Message]:
        """The messages of the answer; the last one may be cut."""
        ...

    @property
    def ended(self) -> Ends:
        """Why it ended."""
        ...


class Answers(Protocol):
    """Whoever answers.

    Attributes:
        name: For people.
        context: Tokens that a prompt and its answer may have together; ``None``: not known.
    """

    name: str
    context: int | None

    def open(
        self,
        conversation: Conversation,
        sampling: Sampling,
        should_stop: Callable[[], bool],
        begun: Any = None,
    ) -> Stream:
        """Return the answer to a conversation.

        Args:
            conversation: It ends with what the user said.
            sampling: How tokens are drawn, and how many.
            should_stop: Asked between two tokens.
            begun: The stream of an answer to it that was cut off, which is to go on.

        Raises:
            DataError: It is too long, or the answer cannot go on.
        """
        ...


class InProcess:
    """A model of this process as one that answers conversations."""

    def __init__(self, answerer: Any) -> None:
        """Let ``answerer``, an ``evaluate.conversation.Answerer``, answer."""
        self.name: str = answerer.name
        self.context: int | None = answerer.context
        self.answerer = answerer

    def open(
        self,
        conversation: Conversation,
        sampling: Sampling,
        should_stop: Callable[[], bool],
        begun: Any = None,
    ) -> Stream:
        """Return the answer to a conversation; the rest is as in ``Answers``."""
        if begun is not None:
            return self.answerer.stream(begun.prompt, sampling, should_stop, begun.ids)
        return self.answerer.stream(self.answerer.render(conversation), sampling, should_stop)


@dataclass(frozen=True)
class Answer:
    """What a model said, and why it ended.

    Attributes:
        messages: The messages that were harmony; the last one may be cut.
        ended: ``stop`` by the model itself, ``call`` by it too, for a tool; ``length`` by
            ``max_new_tokens``, ``interrupt`` by Ctrl-C or whoever asked to stop, ``other`` by a
            server for a reason of its own, such as a filter.
        stream: Where it was read from; it knows what it counted.
    """

    messages: list[Message]
    ended: Ends
    stream: Any = None


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: What the user said.
        answer: What the model said.
        effort: At which it was asked; ``None``: the answerer's.
        instructions: With which it was asked, if any.
    """

    question: Message
    answer: Answer
    effort: Effort | None = None
    instructions: str | None = None

    @property
    def messages(self) -> list[Message]:
        """Both, in order."""
        return [self.question, *self.answer.messages]


@dataclass
class Talk:
    """A conversation with a model that goes on.

    Attributes:
        answerer: Who answers: an ``Answerer`` in process, or anyone who ``Answers``.
        sampling: How.
        instructions: Developer instructions, if any.
        effort: Reasoning effort; ``None``: the answerer's.
        turns: What was said so far.
    """

    answerer: Any
    sampling: Sampling = field(default_factory=Sampling)
    instructions: str | None = None
    effort: Effort | None = None
    turns: list[Turn] = field(default_factory=list)

    @property
    def said(self) -> list[Message]:
        """The messages so far."""
        return [message for turn in self.turns for message in turn.messages]

    @property
    def answers(self) -> Answers:
        """Who answers."""
        return self.answerer if hasattr(self.answerer, "open") else InProcess(self.answerer)

    def conversation(self, asked: Sequence[Message] = ()) -> Conversation:
        """Return what was said, and ``asked`` behind it."""
        found = Conversation(SOURCE, [*self.said, *asked], self.effort)
        found.instructions = self.instructions
        return found

    def ask(
        self,
        text: str,
        show: Callable[[Delta], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Add a user message, generate the answer, and return it.

        Ctrl-C ends the answer alone; what was said of it stays in the conversation. Where nothing
        was, the question is taken back, and so it is where an error is raised.

        Args:
            text: What the user says.
            show: Called with new text as tokens arrive.
            should_stop: Asked before each token.
        """
        question = Message(Header("user"), text, 0.0)
        conversation = self.conversation([question])
        try:
            stream = self.answers.open(conversation, self.sampling, should_stop)
        except KeyboardInterrupt:
            return Answer([], "interrupt")
        answer = _answered(stream, show)
        if answer.messages or answer.ended != "interrupt":
            self.turns.append(Turn(question, answer, self.effort, self.instructions))
        return answer

    def go_on(
        self,
        show: Callable[[Delta], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """Let the last answer go on from where it was cut off; return all of it.

        Args:
            show: Called with what is new.
            should_stop: Asked before each token.

        Raises:
            DataError: It was not cut off, or whoever answers cannot go on.
        """
        last = self.turns[-1] if self.turns else None
        if last is None or last.answer.ended not in ("length", "interrupt"):
            raise DataError("there is no answer that was cut off")
        stream = self.answers.open(
            self.conversation(), self.sampling, should_stop, last.answer.stream
        )
        answer = _answered(stream, show)
        self.turns[-1] = replace(last, answer=answer)
        return answer

    def undo(self) -> str:
        """Take the last question and its answer back; return the question.

        Raises:
            DataError: Nothing was said.
        """
        if not self.turns:
            raise DataError("nothing was said yet")
        return self.turns.pop().question.text

    def reset(self) -> int:
        """Begin anew, with the same instructions and effort; return how many turns are gone."""
        gone, self.turns = len(self.turns), []
        return gone


def _answered(stream: Stream, show: Callable[[Delta], None]) -> Answer:
    """Return the whole of an answer, shown as it comes, up to Ctrl-C."""
    ended: Ends | None = None
    try:
        for delta in stream:
            show(delta)
    except KeyboardInterrupt:
        ended = "interrupt"
        for delta in stream.cut():
            show(delta)
    return Answer(stream.messages, ended or stream.ended, stream)
