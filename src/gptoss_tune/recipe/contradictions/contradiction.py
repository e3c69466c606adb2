"""A contradiction: settings that are sound alone and cannot stand together."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic_core import PydanticCustomError


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Two or more settings that cannot stand together.

    Attributes:
        keys: The settings involved, dotted; the message points at the first that was written.
        got: What the recipe says, expected: what would be sound, todo: how to get there.
        yields: Those of ``keys`` that may go back to their default where the recipe's file gives
            them and an override one of the others: without effect, or said in the other way.
    """

    keys: tuple[str, ...]
    got: str
    expected: str
    todo: str
    yields: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return ``key: got, expected, what to do`` on one line."""
        return f"{self.keys[0]}: got {self.got}, expected {self.expected}; {self.todo}"


def contradiction_error(found: list[Contradiction]) -> PydanticCustomError:
    """Return the error that carries contradictions through pydantic (the caller raises it)."""
    return PydanticCustomError(
        "recipe_contradiction",
        "{text}",
        {"text": "\n".join(map(str, found)), "contradictions": found},
    )
