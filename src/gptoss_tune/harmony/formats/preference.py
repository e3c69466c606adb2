"""Preference pairs: two answers to one prompt, the first preferred.

A method on pairs compares the log-probabilities of two answers to the very same prompt, so the
prompt must be the same list of messages in both conversations, and so must all that stands before
it. Where the answers are whole conversations, what they share is the prompt: the longest common
list of messages, cut back to where a server begins to generate. A chain of thought that both begin
with is part of the answers, since the model writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.conversation import Conversation, Message
from gptoss_tune.harmony.fields import shown
from gptoss_tune.harmony.formats.answers import (
    SETTINGS_BEFORE,
    Piece,
    begins_with,
    cut,
    is_whole,
    read_answered,
    read_asked,
    refuse_channel_weights,
    take_over,
    told,
)
from gptoss_tune.harmony.formats.detect import PAIRS, QUESTIONS, format_of, pair_format
from gptoss_tune.harmony.formats.pair_shapes import Pair, take_pair
from gptoss_tune.harmony.reading import AS_IT_STANDS, Notes, ReadSettings


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, the first preferred.

    Attributes:
        chosen: The prompt and the better answer; the prompt's messages have weight 0.
        rejected: The prompt and the worse answer, alike.
        prompt_length: How many messages the prompt has, the same in both.
        tie: Whether the row says that neither is better: not a pair to train on.
    """

    chosen: Conversation
    rejected: Conversation
    prompt_length: int = 0
    tie: bool = False

    @property
    def equal(self) -> bool:
        """Whether the answers are the same messages: no loss can tell them apart."""
        return told(self.chosen.messages) == told(self.rejected.messages)

    @property
    def differs_in_length_only(self) -> bool:
        """Whether one answer is visibly the beginning of the other; thoughts are not visible."""
        visible = (self._visible(self.chosen), self._visible(self.rejected))
        short, long = sorted(visible, key=_length)
        if not short or told(short) == told(long) or not short[-1].is_final:
            return False
        last, same = len(short) - 1, long[len(short) - 1]
        if told(short[:last]) != told(long[:last]) or same.header != short[-1].header:
            return False
        return same.text.startswith(short[-1].text)

    @property
    def lost_analysis(self) -> bool:
        """Whether the rejected answer thinks and the chosen one does not."""
        return self._thinks(self.rejected) and not self._thinks(self.chosen)

    @property
    def notes(self) -> Notes:
        """What is worth telling about the row: what is said of both conversations counts once."""
        chosen, rejected = self.chosen.notes, self.rejected.notes
        return Notes(chosen.warnings | rejected.warnings, chosen.remarks | rejected.remarks)

    def _visible(self, conversation: Conversation) -> list[Message]:
        answer = conversation.messages[self.prompt_length :]
        return [message for message in answer if not _is_thought(message)]

    def _thinks(self, conversation: Conversation) -> bool:
        return any(map(_is_thought, conversation.messages[self.prompt_length :]))


def _length(visible: list[Message]) -> tuple[int, int]:
    return len(visible), len(visible[-1].text) if visible else 0


def _is_thought(message: Message) -> bool:
    return message.header.channel == "analysis" and message.is_assistant and not message.is_call


def read_preference(
    row: dict[str, Any], source: str, *, reading: ReadSettings = AS_IT_STANDS
) -> Preference:
    """Return both conversations of a preference pair; each ends with its own answer.

    Answers that are equal, and a tie, are no error: ``equal`` and ``tie`` say so.

    Args:
        row: The parsed row, in one of the shapes of ``pair_shapes.py``.
        source: ``file:line``, the start of every message about it.
        reading: How the recipe has rows read.

    Raises:
        DataError: The row is no pair, an answer cannot be trained on, or the answers are not to
            the same prompt.
    """
    name = _format(row, source)
    refuse_channel_weights(row, source)
    pair = take_pair(row, name, source)
    answers = (pair.chosen, pair.rejected)
    asked = None if pair.prompt is None else read_asked(pair.prompt, pair.beside, source, reading)
    whole = [is_whole(answer, pair.prompt, reading) for answer in answers]
    if asked is None and not all(whole):
        raise DataError(_no_prompt(pair, row, source))
    chosen, rejected = (
        read_answered(None if alone else pair.prompt, answer, pair.beside, source, reading)
        for answer, alone in zip(answers, whole, strict=True)
    )
    if asked is not None:
        for conversation, alone in zip((chosen, rejected), whole, strict=True):
            if alone:
                take_over(conversation, asked, pair.beside.get("system"))
    _refuse_other_settings(chosen, rejected, pair)
    if asked is not None and not all(whole):
        length = _after(asked, (chosen, rejected), pair)
    else:
        length = _cut_back(chosen, rejected, pair)
        if asked is not None:
            _refuse_other_prompt(pair.prompt, asked, chosen.messages[:length])
    _note(chosen, rejected, pair)
    for conversation, answer in zip((chosen, rejected), answers, strict=True):
        cut(conversation, length, answer.name)
    return Preference(chosen, rejected, length, pair.tie)


def _note(chosen: Conversation, rejected: Conversation, pair: Pair) -> None:
    lengths = {len(chosen.messages), len(rejected.messages)}
    if len(lengths) == 2 and _shared(chosen, rejected) == min(lengths):
        chosen.notes.warnings[
            "one answer of a pair is the whole beginning of the other: only what follows differs"
        ] += 1
    for key in pair.unread:
        chosen.notes.warnings[
            f"the key {shown(key)} of a pair is neither its prompt nor an answer, and is not read"
        ] += 1


def _shared(chosen: Conversation, rejected: Conversation) -> int:
    """Return how many messages two conversations begin with in common."""
    pairs = list(zip(told(chosen.messages), told(rejected.messages), strict=False))
    return next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))


def _cut_back(chosen: Conversation, rejected: Conversation, pair: Pair) -> int:
    """Return how many messages are the prompt of two whole conversations."""
    length = _shared(chosen, rejected)
    while length and chosen.messages[length - 1].is_assistant:
        length -= 1
    at, names = chosen.source, _names(pair)
    if not length and pair.prompt is not None:
        raise DataError(_other_prompt(pair.prompt, at))
    if not length:
        raise DataError(
            f"{at}: {names} share no prompt, since they differ from their first message on; write "
            "the same messages before both answers"
        )
    for conversation, answer in zip((chosen, rejected), (pair.chosen, pair.rejected), strict=True):
        following = conversation.messages[length].header.role
        if following != "assistant":
            raise DataError(
                f"{at}: after the {length} messages that {names} share, {answer.name} goes on with "
                f"a message of role {following!r}, so they answer different prompts; ask the same "
                "in both"
            )
    return length


def _after(asked: Conversation, read: tuple[Conversation, Conversation], pair: Pair) -> int:
    """Return the length of a prompt that stands in a column of its own, checked against both."""
    length = len(asked.messages)
    for conversation, answer in zip(read, (pair.chosen, pair.rejected), strict=True):
        following = conversation.messages[length : length + 1]
        if not begins_with(conversation, asked) or not (following and following[0].is_assistant):
            raise DataError(
                f"{asked.source}: {answer.name} begins with a message of role "
                f"{conversation.messages[0].header.role!r} and does not repeat the prompt before "
                "its answer; begin it with the assistant's message"
            )
    return length


def _refuse_other_prompt(prompt: Piece | None, asked: Conversation, shared: list[Message]) -> None:
    """Refuse a prompt that whole conversations do not hold; text is one of the user's messages."""
    if told(shared)[: len(asked.messages)] == told(asked.messages):
        return
    users = [message.text.strip() for message in shared if message.header.role == "user"]
    if prompt is None or (prompt.is_text and prompt.messages[0]["content"].strip() in users):
        return
    raise DataError(_other_prompt(prompt, asked.source))


def _other_prompt(prompt: Piece, at: str) -> str:
    return (
        f"{at}: the answers do not begin with the assistant's message, and as whole conversations "
        f"they do not begin with {prompt.name}; make them answers alone, or leave {prompt.name} out"
    )


def _refuse_other_settings(chosen: Conversation, rejected: Conversation, pair: Pair) -> None:
    differing = [
        said
        for name, said in SETTINGS_BEFORE.items()
        if getattr(chosen, name) != getattr(rejected, name)
    ]
    if differing:
        raise DataError(
            f"{chosen.source}: {_names(pair)} have different {' and '.join(differing)}; a pair "
            "answers the same prompt twice: make them equal"
        )


def _names(pair: Pair) -> str:
    return f"{pair.chosen.name} and {pair.rejected.name}"


def _no_prompt(pair: Pair, row: dict[str, Any], at: str) -> str:
    names = (pair.chosen.name, pair.rejected.name)
    todo = "add the column prompt"
    asked = next((key for key in QUESTIONS if isinstance(row.get(key), str)), None)
    if asked is not None:
        columns = ", ".join(
            f'{name}: "{{{{ {column} }}}}"'
            for name, column in zip(("prompt", *names), (asked, *names), strict=True)
        )
        todo = f"name the column of the question in the recipe (columns: {{{columns}}})"
    return f"{at}: the row has {_names(pair)} and no prompt that they answer to; {todo}"


def _format(row: dict[str, Any], at: str) -> str:
    """Return the format of a pair; say of any other row what it is and what to do."""
    name = pair_format(row)
    if name is not None:
        return name
    there = {key for key, value in row.items() if value is not None}
    said = f"{at}: the row has no pair of 'chosen' and 'rejected'"
    for both in PAIRS.values():
        found = there.intersection(both)
        if found and both[0] != "response1":
            (missing,) = {*both} - found
            raise DataError(f"{said}: {missing} is missing or null; add it, or remove the row")
    if not there & {"prompt", "messages", "conversations"}:
        columns = ", ".join(shown(key) for key in list(row)[:8]) or "none"
        raise DataError(
            f"{said} (got {columns}); name their columns in the recipe with templates (columns: "
            "{prompt: ..., chosen: ..., rejected: ...})"
        )
    if format_of(row, at) == "prompt":
        raise DataError(f"{said}: it is a prompt without answers; add both")
    what, method = ("an answer with a label", "kto") if "label" in there else ("one answer", "sft")
    raise DataError(f"{said}: it holds {what}; add both, or set method.name to {method}")
