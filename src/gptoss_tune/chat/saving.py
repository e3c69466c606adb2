"""A conversation as a row that training reads, added to a file of JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gptoss_tune.chat.talk import Talk
from gptoss_tune.errors import DataError
from gptoss_tune.files.atomic import disk_errors
from gptoss_tune.harmony.chat_fields import chat_fields
from gptoss_tune.harmony.fields import Effort

_SUFFIX: Final = ".jsonl"


@dataclass(frozen=True)
class Saved:
    """What was written.

    Attributes:
        path: The file.
        row: Number of the row in it, from 1.
        messages: How many messages the row has.
        left_out: Thoughts that no answer followed, which a row has no place for.
        cut: Answers in it that were cut off.
    """

    path: Path
    row: int
    messages: int
    left_out: int
    cut: int

    def describe(self) -> str:
        """Return it as a sentence, with what has to be looked at before training."""
        text = f"saved as row {self.row} of {self.path}: {self.messages} messages"
        if self.left_out:
            text += f"; {self.left_out} thoughts without an answer are left out"
        if self.cut:
            text += f"; {self.cut} answers were cut off, look at them before you train on it"
        return text


def save_conversation(talk: Talk, path: Path, effort: Effort | None) -> Saved:
    """Add a conversation to a file as a row of ``messages``.

    Args:
        talk: What was said.
        path: A new file, or one of JSON lines that is there.
        effort: At which it was answered, if known.

    Raises:
        DataError: Nothing was said, or the file is another kind of file.
        MachineError: The disk is full.
    """
    if not talk.turns:
        raise DataError("nothing was said yet, so there is nothing to save")
    path = path.expanduser()
    if path.exists() and (path.suffix != _SUFFIX or not path.is_file()):
        raise DataError(
            f"{path}: is there already and no {_SUFFIX} file; name a new file, or one of rows"
        )
    row = chat_fields(talk.conversation())
    if effort is not None:
        row["reasoning_effort"] = effort
    for message in row["messages"]:
        message.pop("reasoning_content", None)  # the same as its thinking
    before = b""
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                before = path.read_bytes()
            start = b"\n" if before and not before.endswith(b"\n") else b""
            line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")
            with path.open("ab") as file:
                file.write(start + line + b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); name another") from None
    rows = sum(1 for one in before.splitlines() if one.strip())
    thoughts = sum(
        _lost_thoughts([m.header.channel for m in t.answer.messages]) for t in talk.turns
    )
    cut = sum(turn.answer.ended in ("length", "interrupt") for turn in talk.turns)
    return Saved(path, rows + 1, len(row["messages"]), thoughts, cut)


def _lost_thoughts(channels: list[str | None]) -> int:
    """Return the thoughts at the end of a turn, which no answer and no call follows."""
    count = 0
    while channels and channels[-1] == "analysis":
        channels.pop()
        count += 1
    return count
