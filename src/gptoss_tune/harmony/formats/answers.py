"""A prompt and an answer that stand in columns of their own -> one conversation, where it is cut.

An answer is text, a message or a list of messages. One that begins with the assistant goes on from
the prompt; one that begins with anybody else is a whole conversation, which holds the prompt once
more. Both are read as one conversation, by the readers of conversations: reading an answer by
itself was the alternative, and it would not know the tools that the prompt declares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from gptoss_tune.errors import DataError
from gptoss_tune.files import strict_json
from gptoss_tune.harmony.conversation import Conversation, Message
from gptoss_tune.harmony.fields import kind, shown
from gptoss_tune.harmony.formats.harmony import is_native, read_native
from gptoss_tune.harmony.formats.keys import WEIGHTS
from gptoss_tune.harmony.formats.openai_chat import read_chat
from gptoss_tune.harmony.formats.sharegpt import is_of_assistant
from gptoss_tune.harmony.reading import ReadSettings

_SPOKEN: Final = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_SPEAKERS: Final = {"Human": "user", "Assistant": "assistant"}


class Piece(NamedTuple):
    """One column of a row as messages that are not read yet.

    Attributes:
        name: The column.
        messages: Its messages, in any spelling.
        places: Where each stands, for errors.
        is_text: Whether the column holds the text of one message.
        is_spoken: Whether it holds the text of several turns.
    """

    name: str
    messages: list[dict[str, Any]]
    places: list[str]
    is_text: bool = False
    is_spoken: bool = False


def take_piece(value: object, role: str, name: str, at: str) -> Piece:
    """Return a column that holds text, a message, or a list of messages.

    Text of turns, "Human: ... Assistant: ..." each after an empty line, is the messages it spells,
    and so is a list of messages that a table had to hold as JSON text.

    Args:
        value: What the column holds.
        role: Who says it, when it is text: ``user`` of a prompt, ``assistant`` of an answer.
        name: The column.
        at: ``file:line``.

    Raises:
        DataError: It holds something else, or an answer is empty.
    """
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, str):
        turns = _spoken(value)
        if turns and role == "user" and turns[-1] == {"role": "assistant", "content": ""}:
            turns = turns[:-1]  # the place where the answer begins
        if turns:
            places = [f"{name} (turn {number})" for number in range(1, len(turns) + 1)]
            return Piece(name, turns, places, is_spoken=True)
        if role == "assistant" and not value.strip():
            raise DataError(f"{at}: {name} is empty; add the answer, or remove the row")
        return Piece(name, [{"role": role, "content": value}], [name], is_text=True)
    if isinstance(value, dict):
        return Piece(name, [value], [name])
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else shown(value)
        raise DataError(f"{at}: {name} is {got}; expected text or a list of messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise DataError(f"{at}: {name}[{index}] is {kind(message)}; expected a message")
    return Piece(name, list(value), [f"{name}[{n}]" for n in range(len(value))])


_SPELLED: Final = (("role", "from", "author"), ("content", "value", "tool_calls", "function_call"))
"""Keys of which a message has one each."""


def _parsed(text: str) -> object:
    """Return the messages that a text spells in JSON; the text, when it spells none."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        value = strict_json.parse(text.encode())
    except ValueError:
        return text
    messages = value if isinstance(value, list) else [value]
    are_messages = messages and all(
        isinstance(message, dict) and all(not message.keys().isdisjoint(key) for key in _SPELLED)
        for message in messages
    )
    return value if are_messages else text


def _spoken(text: str) -> list[dict[str, Any]]:
    """Return the turns that a text of Human and Assistant spells, none when it spells none."""
    parts = _SPOKEN.split(text)
    if len(parts) < 5 or parts[0] or parts[1] != "Human" or "Assistant" not in parts[3::2]:
        return []
    return [
        {"role": _SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def is_whole(answer: Piece, prompt: Piece | None, reading: ReadSettings) -> bool:
    """Whether an answer is a whole conversation, which holds its prompt."""
    if not _is_of_assistant(answer.messages[0], reading):
        return True
    if prompt is None or not _is_of_assistant(prompt.messages[0], reading):
        return False
    return answer.messages[: len(prompt.messages)] == prompt.messages


def _is_of_assistant(message: dict[str, Any], reading: ReadSettings) -> bool:
    author = message.get("author")
    holder = author if isinstance(author, dict) else message
    said = holder.get("from") if holder.get("role") is None else holder["role"]
    return is_of_assistant(reading.role(said))


def read_asked(
    prompt: Piece, beside: dict[str, Any], at: str, reading: ReadSettings
) -> Conversation:
    """Return the conversation of a prompt alone.

    Raises:
        DataError: It cannot be read, or the assistant has its last word.
    """
    if _is_of_assistant(prompt.messages[-1], reading):
        raise DataError(
            f"{at}: {prompt.name} ends in a message of the assistant; an answer follows a message "
            "of the user or a tool's result: move the message into each answer, or remove it"
        )
    return _read([prompt], beside, at, reading, complete=False)


def read_answered(
    prompt: Piece | None,
    answer: Piece,
    beside: dict[str, Any],
    at: str,
    reading: ReadSettings,
) -> Conversation:
    """Return the conversation of an answer: after its prompt, or whole when that is None.

    Raises:
        DataError: It cannot be trained on.
    """
    if prompt is not None and prompt.is_spoken and answer.is_text:
        # The space before it is the one after "Assistant:".
        said = answer.messages[0]
        answer = answer._replace(messages=[{**said, "content": said["content"].strip()}])
    pieces = [answer] if prompt is None else [_without_weights(prompt), answer]
    return _read(pieces, beside, at, reading, complete=True)


def _read(
    pieces: Sequence[Piece],
    beside: dict[str, Any],
    at: str,
    reading: ReadSettings,
    *,
    complete: bool,
) -> Conversation:
    messages = [message for piece in pieces for message in piece.messages]
    places = [place for piece in pieces for place in piece.places]
    reader = read_chat
    if is_native(messages):
        reader = read_native
        if pieces[-1].is_text and complete:
            messages[-1] = {**messages[-1], "channel": "final"}
    row = {**beside, "messages": messages}
    return reader(row, at, complete=complete, reading=reading, places=places)


def _without_weights(prompt: Piece) -> Piece:
    # A prompt's own weights go: with two of them, a message would be refused for their quarrel.
    return prompt._replace(
        messages=[
            {**{name: value for name, value in message.items() if name not in WEIGHTS}, "weight": 0}
            for message in prompt.messages
        ]
    )


def begins_with(conversation: Conversation, asked: Conversation) -> bool:
    """Whether a conversation begins with the messages of a prompt."""
    length = len(asked.messages)
    return told(conversation.messages[:length]) == told(asked.messages)


def told(messages: Sequence[Message]) -> list[tuple[object, str]]:
    """Return what messages say and who says it; their weights do not count."""
    return [(message.header, message.text) for message in messages]


def take_over(conversation: Conversation, asked: Conversation, system: object) -> None:
    """Give a whole conversation what its prompt says before the first message, and it does not.

    Args:
        conversation: The whole conversation.
        asked: Its prompt, as a column of its own says it.
        system: The row's ``system``, which both have.

    Raises:
        DataError: They say different things.
    """
    for name, said in SETTINGS_BEFORE.items():
        nothing = (system, None) if name == "instructions" else (None, (), {})
        ours, theirs = getattr(conversation, name), getattr(asked, name)
        if ours == theirs or theirs in nothing:
            continue
        if ours not in nothing:
            raise DataError(
                f"{conversation.source}: the prompt beside the answers and an answer that repeats "
                f"it have different {said}; make them equal"
            )
        setattr(conversation, name, theirs)


SETTINGS_BEFORE: Final = {
    "instructions": "instructions (system messages)",
    "namespaces": "tools",
    "builtin_tools": "built-in tools",
    "effort": "reasoning efforts",
    "response_formats": "response formats",
}
"""What stands before the first message: attributes of a conversation, and their names."""


def cut(conversation: Conversation, length: int, name: str) -> None:
    """Give the first messages weight 0, and check the weights of the answer after them.

    Raises:
        DataError: A message of the answer has a weight that is neither 0 nor 1.
    """
    messages = conversation.messages
    for message in messages[length:]:
        if message.is_assistant and message.weight not in (0.0, 1.0):
            raise DataError(
                f"{conversation.source}: a message of {name} has weight {message.weight:g}; an "
                "answer's log-probability is a sum over whole messages: write 0 or 1, or scale the "
                "sample with the row's own weight"
            )
    conversation.messages = [
        *(message._replace(weight=0.0) for message in messages[:length]),
        *messages[length:],
    ]


def refuse_channel_weights(row: dict[str, Any], at: str) -> None:
    """Refuse a row's ``channel_weights``, which no sum over whole answers has.

    Raises:
        DataError: The row has some.
    """
    if row.get("channel_weights"):
        raise DataError(
            f"{at}: the row has channel_weights, which supervised fine-tuning alone uses; remove "
            "them: whether the chain of thought counts is set in the recipe (method.analysis)"
        )
