"""One conversation as harmony sees it, and the rules that make it trainable.

Every accepted format (``chat.py``, ``native.py``, ``formats.py``) ends in a ``Conversation``: what
goes into the system and the developer message, and the messages after them, each with its header.
``check_structure`` then refuses what a server could never produce: a thought without an answer, a
call without a result, two answers in a row, no assistant at the end.

Header fields come from an allow-list, because they stand between special tokens; everything else is
free text and can hold anything. Escaping special-token text inside content was the alternative: it
changes what the user wrote, and ``vocabulary.encode`` never makes a special token of it anyway.

openai-harmony's own pydantic classes carry no loss weights and no place for the file and line, so
they are not used here; ``render.py`` hands the library the JSON that they would have produced.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from gptoss_tune.errors import DataError

Role = Literal["user", "assistant", "tool", "developer"]
Effort = Literal["low", "medium", "high"]

EFFORTS: Final = ("low", "medium", "high")
CHANNELS: Final = ("analysis", "commentary", "final")
CONTENT_TYPES: Final = ("json", "code", "text", "<|constrain|>json", "<|constrain|>code")
BUILTIN_TOOLS: Final = {
    "browser": ("browser.search", "browser.open", "browser.find"),
    "python": ("python",),
}
IDENTITY: Final = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF: Final = "2024-06"
MOST_NESTED: Final = 64
"""Deepest JSON taken in tools and schemas; openai-harmony stops at 128."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SPECIAL_TEXT = re.compile(r"<\|[a-z0-9_]{1,32}\|>")


@dataclass(frozen=True, slots=True)
class Header:
    """What stands between ``<|start|>`` and ``<|message|>``; every field is from an allow-list."""

    role: Role
    name: str | None = None
    recipient: str | None = None
    channel: str | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
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


@dataclass(slots=True)
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

    def recipients(self) -> set[str]:
        """Return every recipient that a call may name."""
        declared = {name for tool in self.builtin_tools for name in BUILTIN_TOOLS[tool]}
        for namespace, content in self.namespaces.items():
            declared.update(f"{namespace}.{tool['name']}" for tool in content["tools"])
        return declared

    def texts(self) -> list[str]:
        """Return all free text of the row, for counting what was injected."""
        texts = [message.text for message in self.messages]
        texts += [text for text in (self.instructions, self.response_formats) if text]
        if self.namespaces:
            texts.append(json.dumps(self.namespaces, ensure_ascii=False))
        return texts


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


def take_text(value: object, at: str, what: str) -> str:
    """Return ``value`` when it is text that has a UTF-8 form.

    Raises:
        DataError: It is something else, or holds half a surrogate pair.
    """
    if not isinstance(value, str):
        raise DataError(f"{at}: {what} is {kind(value)}; expected text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{at}: {what} holds half a surrogate pair at character {error.start} "
                f"(\\u{ord(value[error.start]):04x}); write the whole character"
            ) from None
    return value


def take_name(value: object, at: str, what: str) -> str:
    """Return ``value`` when it may stand in a header: letters, digits, ``_``, ``-``, at most 64.

    Raises:
        DataError: It is not such a name.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise DataError(
            f"{at}: {what} is {shown(value)}; expected 1 to 64 of the characters A-Z a-z 0-9 _ -"
        )
    return value


def take_weight(value: object, at: str, what: str) -> float:
    """Return ``value`` as a loss weight between 0 and 100.

    Raises:
        DataError: It is not such a number.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 100:
        return float(value)
    raise DataError(f"{at}: {what} is {shown(value)}; expected a number from 0 to 100")


def take_effort(value: object, at: str) -> Effort:
    """Return ``value`` as a reasoning effort, whatever its case.

    Raises:
        DataError: It is none of low, medium, high.
    """
    if isinstance(value, str) and value.lower() in EFFORTS:
        return value.lower()  # pyright: ignore[reportReturnType]
    raise DataError(f"{at}: reasoning_effort is {shown(value)}; expected low, medium or high")


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


def nested(value: object) -> int:
    """Return how deeply lists and objects are nested, without recursion; stops past the limit."""
    level, depth = [value], 0
    while level and depth <= MOST_NESTED:
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        depth += any(isinstance(item, (dict, list)) for item in level)
        level = inner
    return depth


def kind(value: object) -> str:
    """Return what a JSON value is, in the words of JSON."""
    names = {bool: "true/false", int: "a number", float: "a number", str: "text"}
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    return names.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """Return a value as a message shows it: short, and with everything unprintable spelled out."""
    if isinstance(value, str):
        text = ascii(value) if not value.isprintable() else repr(value)
    elif isinstance(value, (int, float)) or value is None:
        text = (
            json.dumps(value) if not isinstance(value, int) or abs(value) < 10**18 else "a number"
        )
    else:
        return kind(value)
    return text if len(text) <= 60 else text[:56] + "...'"
