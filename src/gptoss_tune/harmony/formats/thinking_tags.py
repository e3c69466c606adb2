"""Thoughts that stand in the text of an answer: found, and made messages of their own.

Sets made for other models write ``<think>...</think>answer``, their templates cut it out again.
gpt-oss writes thoughts in the analysis channel; as text of the final channel they would be shown to
whoever asks. Only tags at the start of a text are split: further in, an answer may speak of them. A
closing tag without an opening one, which the template of such a model has written, ends a thought
only where no message of thought stands right before the text: after one, the text is the answer and
speaks of the tag. A thought in tags that repeats the message before it is left out, any other is
one more message; blank ones are none. An answer that is nothing but blank thoughts is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation, Header, Message

_WORDS: Final = "think|thinking|thought|thoughts|reasoning|scratchpad"
_OPEN: Final = re.compile(rf"\s*<({_WORDS})>", re.IGNORECASE)
_FURTHER_OPEN: Final = re.compile(rf"<(?:{_WORDS})>", re.IGNORECASE)
_CLOSE: Final = re.compile(rf"</({_WORDS})>", re.IGNORECASE)
_ANY_TAG: Final = re.compile(
    rf"</?(?:{_WORDS})>|<\|(?:begin|end)_of_(?:thought|solution)\|>|<\|channel\|>", re.IGNORECASE
)
_OF_OTHER_MODELS: Final = re.compile(
    r"\s*<\|begin_of_thought\|>(.*?)<\|end_of_thought\|>(.*)", re.DOTALL
)
_SOLUTION: Final = re.compile(
    r"\s*<\|begin_of_solution\|>(.*?)(?:<\|end_of_solution\|>\s*)?", re.DOTALL
)
_HARMONY: Final = re.compile(
    r"\s*(?:<\|start\|>assistant)?<\|channel\|>analysis<\|message\|>(.*?)<\|end\|>(.*)", re.DOTALL
)
_HARMONY_FINAL: Final = re.compile(
    r"\s*(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>(.*?)(?:<\|(?:return|end)\|>\s*)?",
    re.DOTALL,
)
_MOST_THOUGHTS: Final = 64
_ANALYSIS: Final = Header("assistant", channel="analysis")


def split_tags(messages: list[Message], at: str) -> list[Message]:
    """Return the messages with the thoughts of answers and preambles in the analysis channel.

    Raises:
        DataError: An answer holds empty thoughts and nothing else.
    """
    split: list[Message] = []
    for message, following in zip_longest(messages, messages[1:]):
        if not _can_hold_thoughts(message):
            split.append(message)
            continue
        before = split[-1] if split else None
        known = (before.text.strip() or None) if before and _is_thought(before) else None
        thoughts, rest = _split(message.text, may_be_unopened=known is None)
        split += [
            Message(_ANALYSIS, thought, message.weight) for thought in thoughts if thought != known
        ]
        if rest:
            split.append(message._replace(text=rest))
        elif not thoughts and known is None and not _opens_call(message, following):
            raise DataError(
                f"{at}: a message of the assistant holds the tags of a thought and nothing else; "
                "add the reply, or remove the row"
            )
    return split


def _is_thought(message: Message) -> bool:
    return message.header.channel == "analysis" and message.is_assistant and not message.is_call


def _opens_call(message: Message, following: Message | None) -> bool:
    """Whether a message is the preamble of the call that follows."""
    return not message.is_final and following is not None and following.is_call


def note_tags(conversation: Conversation) -> None:
    """Count the answers whose text spells thoughts."""
    for message in conversation.messages:
        if _spells_thoughts(message):
            todo = (
                "move them to 'thinking'"
                if conversation.reading.thinking_tags == "split"
                else "set data.thinking_tags to split, or move them to 'thinking'"
            )
            conversation.notes.warnings[
                f"an answer spells thoughts in its text, as <think> does; {todo}"
            ] += 1


def spells_thoughts(conversation: Conversation) -> bool:
    """Whether an answer thinks in its text, which is told by ``note_tags``."""
    return any(map(_spells_thoughts, conversation.messages))


def _spells_thoughts(message: Message) -> bool:
    return _can_hold_thoughts(message) and _ANY_TAG.search(message.text) is not None


def _can_hold_thoughts(message: Message) -> bool:
    header = message.header
    spoken = header.role == "assistant" and header.channel != "analysis" and not message.is_call
    return spoken and ("<" in message.text)


def _split(text: str, *, may_be_unopened: bool) -> tuple[list[str], str]:
    """Return the thoughts at the start of a text, those that say something, and the rest."""
    thoughts: list[str] = []
    found = False
    for thought, rest in _leading(text, may_be_unopened=may_be_unopened):
        found = True
        text = rest
        if thought.strip():
            thoughts.append(thought.strip())
    for spelled in (_SOLUTION, _HARMONY_FINAL):
        if matched := spelled.fullmatch(text):
            return thoughts, matched[1].strip()
    return thoughts, text.lstrip() if found else text


def _leading(text: str, *, may_be_unopened: bool) -> Iterator[tuple[str, str]]:
    """Yield each thought at the start and what follows it."""
    for number in range(_MOST_THOUGHTS):
        matched = _OF_OTHER_MODELS.fullmatch(text) or _HARMONY.fullmatch(text)
        if matched:
            text = matched[2]
            yield matched[1], text
        elif opened := _OPEN.match(text):
            # The text itself is searched: lowered, it can be longer (İ becomes two letters).
            ending = re.compile(f"</{re.escape(opened[1])}>", re.IGNORECASE)
            closed = ending.search(text, opened.end())
            if closed is None:
                return
            thought, text = text[opened.end() : closed.start()], text[closed.end() :]
            yield thought, text
        elif number == 0 and may_be_unopened and (closed := _unopened(text)):
            thought, text = text[: closed.start()], text[closed.end() :]
            yield thought, text
        else:
            return


def _unopened(text: str) -> re.Match[str] | None:
    """Return the first closing tag, when no opening one stands before it."""
    closed = _CLOSE.search(text)
    opened = _FURTHER_OPEN.search(text)
    return None if closed and opened and opened.start() < closed.start() else closed
