"""What a model gave as its answer, channels apart: all that a grader sees."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """One call of a tool.

    Attributes:
        name: Of the function, without ``functions.`` before it; ``python`` and ``browser.open`` as
            they are.
        arguments: Text as the model wrote it, which need not be JSON.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class Given:
    """The answer to one question.

    Attributes:
        final: Text of the last message in the final channel; ``None`` without one.
        calls: Calls of tools, in order.
        analysis: The chain of thought; graders of answers do not look at it.
    """

    final: str | None
    calls: tuple[Call, ...] = ()
    analysis: str = ""
