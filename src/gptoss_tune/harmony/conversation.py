"""One conversation as harmony sees it, and the rules that make it trainable.

Every accepted format (``formats/``) ends in a ``Conversation``: what goes into the system and the
developer message, and the messages after them, each with its header.
``check_structure`` then refuses what a server could never produce: a thought without an answer, a
call without a result, two answers in a row, no assistant at the end.

Header fields come from an allow-list, because they stand between special tokens; everything else is
free text and can hold anything. Escaping special-token text inside content was the alternative: it
changes what the user wrote, and ``vocabulary.encode`` never makes a special token of it anyway.

openai-harmony's own pydantic classes carry no loss weights and no place for the file and line, so
they are not used here; ``render.py`` hands the library the JSON that they would have produced.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import Effort, shown, take_effort, take_weight
from gptoss_tune.harmony.policy_label import Judged
from gptoss_tune.harmony.reading import AS_IT_STANDS, Notes, ReadSettings

Role = Literal["user", "assistant", "tool", "developer"]

CHANNELS: Final = ("analysis", "commentary", "final")
TEXT: Final = "text"
"""What is counted beside the channels: documents of raw text, which stand in none."""
CHANNEL_NAMES: Final = ("other", *CHANNELS, TEXT)
"""Names of the channel numbers that a dataset's ``channels`` column holds."""
CONTENT_TYPES: Final = ("json", "code", "text", "<|constrain|>json", "<|constrain|>code")
BUILTIN_TOOLS: Final = {
    "browser": ("browser.search", "browser.open", "browser.find"),
    "python": ("python",),
}
IDENTITY: Final = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF: Final = "2024-06"

_SPECIAL_TEXT = re.compile(r"<\|[a-z0-9_]{1,32}\|>")


class Header(NamedTuple):
    """What stands between ``<|start|>`` and ``<|message|>``; every field is from an allow-list."""

    role: Role
    name: str | None = None
    recipient: str | None = None
    channel: str | None = None
    content_type: str | None = None


class Message(NamedTuple):
    """A header, its text, and the weight its tokens have in the loss when it is trained."""

    header: Header
    text: str
    weight: float = 1.0

    @property
    def is_assistant(self) -> bool:
        """Whether the model writes this message."""
        return self.header.role == "assistant"

    @property
    def is_call(self) -> bool:
        """Whether this message calls a tool: it ends in ``<|call|>``."""
        return self.header.role == "assistant" and self.header.recipient is not None

    @property
    def is_final(self) -> bool:
        """Whether this message ends the assistant's turn."""
        return self.header.channel == "final"


@dataclass
class Conversation:
    """A row of a dataset, read and checked.

    Attributes:
        source: ``file:line``, for messages.
        messages: Everything after the system and developer messages.
        effort: Reasoning effort of the row; None takes the recipe's.
        builtin_tools: ``browser`` and ``python``, announced in the system message.
        instructions: The developer's instructions: what datasets call the system prompt.
        namespaces: Function tools by namespace, as openai-harmony's JSON.
        response_formats: Text of the structured-output section that ends the developer message.
        weight: Factor on the loss weights of the whole row.
        channel_weights: Weights that replace the recipe's, by channel.
        reading: How the recipe has rows read.
        notes: What is worth telling about the row.
        judged: The policy and the label that the row has, of one that teaches a classifier.
    """

    source: str
    messages: list[Message] = field(default_factory=list)
    effort: Effort | None = None
    builtin_tools: tuple[str, ...] = ()
    instructions: str | None = None
    namespaces: dict[str, Any] = field(default_factory=dict)
    response_formats: str | None = None
    weight: float = 1.0
    channel_weights: dict[str, float] = field(default_factory=dict)
    reading: ReadSettings = AS_IT_STANDS
    notes: Notes = field(default_factory=Notes)
    judged: Judged | None = None

    @cached_property
    def namespaces_json(self) -> str:
        """The function tools as JSON text, empty for none; they do not change once read."""
        return json.dumps(self.namespaces, ensure_ascii=False) if self.namespaces else ""

    def add_instructions(self, text: str) -> None:
        """Add to the developer's instructions; blank ones, and the same again, say nothing.

        Later ones are a message of their own, as the library renders them and as a server does.
        """
        if not text.strip() or (not self.messages and text == self.instructions):
            return
        if self.messages:
            body = f"# Instructions\n\n{text}"
            self.messages.append(Message(Header("developer"), body, 0.0))
            return
        known = self.instructions
        self.instructions = text if known is None else f"{known}\n\n{text}"

    def recipients(self) -> set[str]:
        """Return every recipient that a call may name."""
        declared = {name for tool in self.builtin_tools for name in BUILTIN_TOOLS[tool]}
        for namespace, content in self.namespaces.items():
            declared.update(f"{namespace}.{tool['name']}" for tool in content["tools"])
        return declared

    @property
    def thinks(self) -> bool:
        """Whether the assistant thinks anywhere in the row."""
        return any(message.header.channel == "analysis" for message in self.messages)

    def turn_count(self) -> int:
        """Return how many turns the assistant has: one per run of messages it answers."""
        return len(cut_turns([message.header for message in self.messages]))

    def keys(self) -> tuple[int, int]:
        """Return 64-bit hashes of the whole row and of its prompt.

        Two rows with equal hashes hold the same conversation, or ask the same; the line they stand
        on, the recipe's settings and their loss weights do not count.
        """
        about = (self.instructions, self.namespaces_json, self.response_formats)
        told = [repr((*about, self.builtin_tools, self.effort))]
        asked = None
        for header, text, _ in self.messages:
            if asked is None and header.role == "assistant":
                asked = _hashed(told)
            told += (header.role, header.channel or "", header.recipient or "", text)
        row = _hashed(told)
        return row, row if asked is None else asked

    def texts(self) -> list[str]:
        """Return all free text of the row, for counting what was injected."""
        texts = [message.text for message in self.messages]
        texts += [text for text in (self.instructions, self.response_formats) if text]
        texts.append(self.namespaces_json)
        return texts


def cut_turns(headers: Sequence[Header]) -> list[range]:
    """Cut messages into turns: each goes on until the assistant has given its final answer.

    What is said between a tool's result and the answer, such as an agent's reminder, belongs to the
    turn: a server keeps the thoughts before it.
    """
    starts = [0]
    for index in range(1, len(headers)):
        answered = headers[index - 1].channel == "final"
        if answered and headers[index].role in ("user", "developer"):
            starts.append(index)
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(headers)], strict=True)]


def _hashed(told: list[str]) -> int:
    digest = hashlib.blake2b("\0".join(told).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def count_special_text(text: str) -> int:
    """Return how often text spells a special token, such as ``<|end|>``."""
    return len(_SPECIAL_TEXT.findall(text)) if "<|" in text else 0


def check_structure(conversation: Conversation, *, complete: bool = True) -> None:
    """Refuse an order of messages that no server can produce.

    Args:
        conversation: The row as read.
        complete: Whether the last message must be the assistant's, as training needs; a prompt
            alone ends before it.

    Raises:
        DataError: Names the message and what to do.
    """
    at, messages = conversation.source, conversation.messages
    if not messages:
        raise DataError(f"{at}: no messages; a row needs at least one question and its answer")
    recipients = conversation.recipients()
    before: Message | None = None
    for message in messages:
        if message.is_call:
            _check_declared(at, message, recipients)
        _check_follows(at, before, message)
        before = message
    last = messages[-1]
    if complete and not (last.is_final or last.is_call):
        _refuse_ending(at, last)


def _check_declared(at: str, call: Message, recipients: set[str]) -> None:
    recipient = call.header.recipient or ""
    if recipient not in recipients:
        listed = ", ".join(sorted(recipients)) or "none"
        raise DataError(
            f"{at}: the assistant calls the undeclared tool {recipient!r} (declared: {listed}); "
            "add it to the row's tools, or remove the call"
        )
    expected = "commentary" if recipient.split(".")[0] not in BUILTIN_TOOLS else "analysis"
    if call.header.channel not in (expected, "commentary"):
        raise DataError(
            f"{at}: the call of {recipient!r} is in channel {call.header.channel!r}; "
            f"calls of functions go to 'commentary', of built-in tools to 'analysis'"
        )


def _check_follows(at: str, before: Message | None, message: Message) -> None:
    role = message.header.role
    if role == "tool":
        called = before.header.recipient if before is not None and before.is_call else None
        if called is None:
            raise DataError(
                f"{at}: a result of the tool {message.header.name!r} follows no call; "
                "put it after the assistant's call, or remove it"
            )
        if called != message.header.name:
            raise DataError(
                f"{at}: the tool {message.header.name!r} answers a call of {called!r}; "
                "results follow their own call, one at a time"
            )
        return
    if before is None or not before.is_assistant:
        return
    if before.is_call:
        raise DataError(
            f"{at}: the call of {before.header.recipient!r} has no result before the message of "
            f"role {role!r}; add the tool's message, or end the row with the call"
        )
    if before.is_final and role == "assistant":
        raise DataError(
            f"{at}: two answers of the assistant in a row; a turn ends with its final answer: "
            "join them, or put the user's message between them"
        )
    if not before.is_final and role != "assistant":
        raise DataError(
            f"{at}: the assistant's turn ends in channel {before.header.channel!r} before the "
            f"message of role {role!r}; add its final answer or its call"
        )


def _refuse_ending(at: str, last: Message) -> None:
    if last.is_assistant:
        raise DataError(
            f"{at}: the last message is in channel {last.header.channel!r}; training needs a final "
            "answer or a call at the end"
        )
    raise DataError(
        f"{at}: last message has role {last.header.role!r}; training needs an assistant reply at "
        "the end"
    )


def take_settings(row: dict[str, Any], conversation: Conversation) -> None:
    """Read a row's ``reasoning_effort``, ``weight``, ``channel_weights`` and ``builtin_tools``.

    Raises:
        DataError: One of them cannot be used.
    """
    at = conversation.source
    if row.get("reasoning_effort") is not None:
        conversation.effort = take_effort(row["reasoning_effort"], at)
    if row.get("weight") is not None:
        conversation.weight = take_weight(row["weight"], at, "weight")
    weights = row.get("channel_weights")
    if weights is not None:
        if not isinstance(weights, dict) or not set(weights) <= set(CHANNELS):
            raise DataError(
                f"{at}: channel_weights is {shown(weights)}; expected weights for "
                f"{', '.join(CHANNELS)}"
            )
        conversation.channel_weights = {
            channel: take_weight(weight, at, f"channel_weights.{channel}")
            for channel, weight in weights.items()
            if weight is not None
        }
    builtin = row.get("builtin_tools")
    if builtin is not None:
        add_builtin_tools(conversation, builtin)


def add_builtin_tools(conversation: Conversation, names: object) -> None:
    """Announce ``browser`` or ``python`` in the system message.

    Raises:
        DataError: A name that gpt-oss has no built-in tool for.
    """
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name in BUILTIN_TOOLS for name in names
    ):
        raise DataError(
            f"{conversation.source}: builtin_tools is {shown(names)}; expected a list of "
            f"{' and '.join(BUILTIN_TOOLS)}"
        )
    merged = {*conversation.builtin_tools, *names}
    conversation.builtin_tools = tuple(name for name in BUILTIN_TOOLS if name in merged)
