"""How rows are read, as the recipe says, and what is worth telling about a row that was.

A note is a sentence without numbers, so that equal notes of many rows are one line with a count. A
warning says that something of the row is lost or taken otherwise than it may be meant; a remark is
something that a server does alike. Rows that lose what they say are refused instead.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal

ThinkingTags = Literal["keep", "split"]


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """What the recipe says about reading; its data section has the same names.

    Attributes:
        thinking_tags: Whether thoughts that stand in the text of an answer become messages.
        roles: ``(role in the data, role here)``.
        tool_names: ``(name in the data, name here)``.
        ignored_keys: Keys of rows and messages that are known to mean nothing for training.
    """

    thinking_tags: ThinkingTags = "keep"
    roles: tuple[tuple[str, str], ...] = ()
    tool_names: tuple[tuple[str, str], ...] = ()
    ignored_keys: tuple[str, ...] = ()

    def role(self, said: object) -> object:
        """Return the role that the recipe gives to one of the data."""
        return dict(self.roles).get(said, said) if isinstance(said, str) else said

    def tool_name(self, said: object) -> object:
        """Return the name that the recipe gives to a tool."""
        return dict(self.tool_names).get(said, said) if isinstance(said, str) else said


AS_IT_STANDS: Final = ReadSettings()
"""Nothing is renamed and nothing split."""


@dataclass(slots=True)
class Notes:
    """How often each warning and each remark holds in a row, and the label of its policy.

    Attributes:
        warnings: By sentence.
        remarks: By sentence.
        label: Policy and label of a row that teaches a classifier.
    """

    warnings: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)
    label: tuple[str, str] | None = None


THINKING: Final = ("thinking", "reasoning_content", "reasoning")
"""The chain of thought, as gpt-oss's template, vLLM's answers and OpenRouter's name it."""
WEIGHTS: Final = ("weight", "train", "loss")
"""Loss weight of a message: a number, or a switch."""

SETTINGS: Final = frozenset(
    {
        *("tools", "functions", "response_format", "builtin_tools"),
        *("reasoning_effort", "weight", "channel_weights", "system"),
    }
)
"""Keys that mean the same beside messages, conversations, and prompt with completion."""
GRADING: Final = (
    *("answer", "pattern", "grader", "policy"),
    *("choices", "rules", "calls", "schema", "equals"),
)
"""Keys by which an evaluation grades the answer to a row that names a grader or a policy."""
