"""What a row of the data is to a method: a conversation, a pair, an answer and label, or a prompt.

The kind decides how rows are read and what a sample is; with the recipe's data section it is all
that the data set depends on, so it is part of the key of every cached rendering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from gptoss_tune.recipe.schema import Analysis, MethodSection

Rows = Literal["conversation", "pair", "label", "prompt"]


@dataclass(frozen=True, slots=True)
class SampleKind:
    """What rows are read as.

    Attributes:
        rows: ``conversation``: its answers are trained; ``pair``: a chosen and a rejected answer to
            one prompt; ``label``: an answer that is good or bad; ``prompt``: what is asked, which
            ``rollout/tasks.py`` reads, since nothing of it is rendered before it is played.
        analysis: Whether the chain of thought of such answers counts.
    """

    rows: Rows = "conversation"
    analysis: Analysis = "counted"


CONVERSATIONS: Final = SampleKind()
"""What supervised fine-tuning trains on."""
PROMPTS: Final = SampleKind("prompt")
"""What reinforcement learning plays."""


def kind_of(method: MethodSection) -> SampleKind:
    """Return what the rows are to a recipe's method."""
    if method.name == "sft":
        return CONVERSATIONS
    if method.name == "grpo":
        return PROMPTS
    return SampleKind("label" if method.name == "kto" else "pair", method.analysis)
