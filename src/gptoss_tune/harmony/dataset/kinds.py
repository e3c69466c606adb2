"""What a row of the data is to a method: a conversation, a pair of answers, or an answer and label.

The kind decides how rows are read and what a sample is; with the recipe's data section it is all
that the data set depends on, so it is part of the key of every cached rendering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from gptoss_tune.recipe.schema import Analysis, MethodSection

Rows = Literal["conversation", "pair", "label"]


@dataclass(frozen=True, slots=True)
class SampleKind:
    """What rows are read as.

    Attributes:
        rows: ``conversation``: its answers are trained; ``pair``: a chosen and a rejected answer to
            one prompt; ``label``: an answer that is good or bad.
        analysis: Whether the chain of thought of such answers counts.
    """

    rows: Rows = "conversation"
    analysis: Analysis = "counted"


CONVERSATIONS: Final = SampleKind()
"""What supervised fine-tuning trains on."""


def kind_of(method: MethodSection) -> SampleKind:
    """Return what the rows are to a recipe's method."""
    if method.name == "sft":
        return CONVERSATIONS
    return SampleKind("label" if method.name == "kto" else "pair", method.analysis)
