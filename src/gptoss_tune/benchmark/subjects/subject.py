"""What is compared: anything that answers a question through the harmony format.

A subject is never sent a text to go on with. In process it gets the ids that a server would render,
behind an API the messages themselves; so the raw completions that score gpt-oss 0.30 where its own
format scores 0.90 (vllm-project/vllm#48253) cannot be asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gptoss_tune.errors import MachineError
from gptoss_tune.evaluate.parse import Answer, Ended
from gptoss_tune.evaluate.prompts import Question
from gptoss_tune.grading.answer import Given


@dataclass(frozen=True)
class Asking:
    """How answers are drawn.

    Attributes:
        max_new_tokens: Longest answer, chain of thought included.
        temperature: 0 takes the likeliest token.
        top_p: Only the likeliest tokens that have this probability together are drawn from.
        seed: Of drawn tokens.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Reply:
    """One answer of a subject.

    Attributes:
        answer: As read: all that graders and format checks look at.
        tokens: All of it; ``None`` where a server does not count.
        analysis_tokens: Of the chain of thought; ``None`` where that is not known.
    """

    answer: Answer
    tokens: int | None
    analysis_tokens: int | None

    @property
    def given(self) -> Given:
        """What graders see."""
        return self.answer.given()

    @property
    def messages(self) -> tuple[dict[str, Any], ...]:
        """Its messages with ``channel``, ``recipient`` and ``content``, as JSON holds them."""
        return tuple(self.answer.as_dicts())

    @property
    def ended(self) -> Ended:
        """Why it ended; ``length``: it was cut off at ``max_new_tokens``."""
        return self.answer.ended


class UnreadableServer(MachineError):
    """A server hands channels over as one text; none of its answers can be graded."""


class Subject(Protocol):
    """A model that is asked."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    @property
    def protocol(self) -> str:
        """How it is asked, for people."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on, as JSON: hashes of weights, or a server's address and name.

        Answers are cached under it, so two subjects that may answer differently differ here.
        """
        ...

    def ask(self, questions: Sequence[Question], asking: Asking) -> Iterator[tuple[int, Reply]]:
        """Yield the answer to each question with its number, in any order, as soon as it is there.

        Raises:
            MachineError: It cannot be asked, or did not answer.
        """
        ...

    def close(self) -> None:
        """Free what it holds; it is not asked any more."""
        ...
