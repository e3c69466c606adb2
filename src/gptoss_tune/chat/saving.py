"""A conversation as rows that training reads, added to a file of JSON lines.

A row has one reasoning effort and one text of instructions. Where they were changed on the way,
each form gets a row of its own: all that was said up to its last answer, of which the answers that
were given in another form have weight 0, so that none is trained in a form it was not given in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gptoss_tune.chat.talk import SOURCE, Talk, Turn
from gptoss_tune.errors import DataError
from gptoss_tune.files.atomic import disk_errors
from gptoss_tune.harmony.chat_fields import chat_fields
from gptoss_tune.harmony.conversation import CHANNELS, Conversation
from gptoss_tune.harmony.fields import Effort

_SUFFIX: Final = ".jsonl"
_Form = tuple[Effort | None, str | None]
"""Reasoning effort and instructions that a question was asked with."""


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        path: The file.
        row: Number of the first row in it, from 1.
        messages: How many messages each row has.
        left_out: Thoughts that no answer followed, which a row has no place for.
        lost: Answers that left the format, in whole or in part; what is no harmony is left out.
        dropped: Questions at the end without an answer that a row can hold, left out with it.
        cut: Answers in it that were cut off.
    """

    path: Path
    row: int
    messages: tuple[int, ...]
    left_out: int
    lost: int
    dropped: int
    cut: int

    def describe(self) -> str:
        """Return it as a sentence, with what has to be looked at before training."""
        number = len(self.messages)
        if number == 1:
            text = f"saved as row {self.row} of {self.path}: {self.messages[0]} messages"
        else:
            listed = ", ".join(map(str, self.messages))
            text = (
                f"saved as rows {self.row} to {self.row + number - 1} of {self.path}: {listed} "
                "messages; one row for each effort and instructions that were asked with, the "
                "answers of the others have weight 0 in it"
            )
        if self.left_out:
            text += f"; {self.left_out} thoughts without an answer are left out"
        if self.lost:
            text += f"; {self.lost} answers left the format, what is no harmony is left out"
        if self.dropped:
            text += f"; {self.dropped} questions at the end, without an answer, are left out"
        if self.cut:
            text += f"; {self.cut} answers were cut off, look at them before you train on it"
        return text


def save_conversation(talk: Talk, path: Path, usual: Effort | None) -> Saved:
    """Add a conversation to a file as rows of ``messages``: one, unless its form changed.

    Args:
        talk: What was said.
        path: A new file, or one of JSON lines that is there.
        usual: Effort of what was asked at none of its own, if known.

    Raises:
        DataError: Nothing was said, or the file is another kind of file.
        MachineError: The disk is full.
    """
    if not talk.turns:
        raise DataError("nothing was said yet, so there is nothing to save")
    try:
        path = path.expanduser()
    except RuntimeError:
        raise DataError(f"{path}: there is no such user's home; name the whole path") from None
    if path.exists() and (path.suffix != _SUFFIX or not path.is_file()):
        raise DataError(
            f"{path}: is there already and no {_SUFFIX} file; name a new file, or one of rows"
        )
    turns = list(talk.turns)
    while turns and not _is_answered(turns[-1]):
        turns.pop()
    if not turns:
        raise DataError("no answer so far is one that a row can hold, so there is nothing to save")
    rows = _rows(turns, usual)
    before = b""
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                before = path.read_bytes()
            start = b"\n" if before and not before.endswith(b"\n") else b""
            lines = [json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") for row in rows]
            with path.open("ab") as file:
                file.write(start + b"".join(line + b"\n" for line in lines))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); name another") from None
    there = sum(1 for one in before.splitlines() if one.strip())
    return Saved(
        path,
        there + 1,
        tuple(len(row["messages"]) for row in rows),
        sum(map(_lost_thoughts, talk.turns)),
        sum(map(_left_the_format, talk.turns)),
        len(talk.turns) - len(turns),
        sum(turn.answer.ended in ("length", "interrupt", "other") for turn in turns),
    )


def _rows(turns: list[Turn], usual: Effort | None) -> list[dict[str, Any]]:
    """Return a row for each form that an answer was given in, in the order of their first."""
    forms: list[_Form] = [(turn.effort or usual, turn.instructions) for turn in turns]
    last = {form: n for n, form in enumerate(forms) if _is_answered(turns[n])}
    kept = [form for form in dict.fromkeys(forms) if form in last]
    return [_row(turns[: last[form] + 1], forms, form) for form in kept]


def _row(turns: list[Turn], forms: list[_Form], form: _Form) -> dict[str, Any]:
    said = [message for turn in turns for message in turn.messages]
    conversation = Conversation(SOURCE, said)
    effort, conversation.instructions = form
    row = chat_fields(conversation)
    if effort is not None:
        row["reasoning_effort"] = effort
    asked = -1
    for message in row["messages"]:
        message.pop("reasoning_content", None)  # the same as its thinking
        asked += message["role"] == "user"
        if message["role"] == "assistant" and forms[asked] != form:
            message["weight"] = 0
    return row


def _is_answered(turn: Turn) -> bool:
    """Return whether a row can hold anything of the answer: a thought alone has no place in it."""
    said = [(m.header, m.text) for m in turn.answer.messages]
    return any(h.recipient or (h.channel != "analysis" and text) for h, text in said)


def _left_the_format(turn: Turn) -> bool:
    """Return whether something of the answer is in no message of it."""
    by_channel = getattr(turn.answer.stream, "by_channel", None)
    if by_channel is None:
        return False  # a server has told its channels apart
    others = any(n for channel, n in by_channel.items() if channel not in CHANNELS)
    return others or not turn.answer.messages


def _lost_thoughts(turn: Turn) -> int:
    """Return the thoughts at the end of a turn, which no answer and no call follows."""
    count = 0
    for message in reversed(turn.answer.messages):
        if message.header.channel != "analysis" or message.header.recipient:
            break
        count += 1
    return count
