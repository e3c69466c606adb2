"""How the tokens of an answer are drawn, for whoever asks; without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are drawn.

    Attributes:
        max_new_tokens: Longest answer, chain of thought included.
        temperature: 0 takes the likeliest token.
        top_p: Only the likeliest tokens that have this probability together are drawn from.
        seed: The same draws every time; ``None``: others each time.
    """

    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
