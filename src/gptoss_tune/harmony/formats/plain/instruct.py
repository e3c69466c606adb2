"""A question and its answer in two columns: Alpaca, Dolly, and the other names of the same.

A row is recognised when exactly one column of those that ask and one of those that answer is there:
two answers (a solution and its result) or a passage beside the question may be meant in several
ways, and the row is refused with the ``columns`` to write. ``input`` and ``context`` beside an
instruction follow it after an empty line. Names are compared without their case.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import kind, take_text
from gptoss_tune.harmony.reading import THINKING

ASKING: Final = ("prompt", "instruction", "question", "query", "problem", "input")
"""Columns that ask."""
ANSWERING: Final = ("completion", "response", "output", "answer", "solution")
"""Columns that answer."""
AFTER_INSTRUCTION: Final = ("input", "context")
"""Columns that an instruction may be about; one of them follows it."""
PASSAGES: Final = ("context", "passage", "document", "article", "paragraph", "text")
"""Columns that a question may be about."""
_HISTORY: Final = "history"


class Columns(NamedTuple):
    """Which columns of a row are its question and its answer.

    Attributes:
        question: The column that asks.
        after: The one that follows an instruction, None for none.
        answer: The column that answers.
    """

    question: str
    after: str | None
    answer: str


def question_and_answer(row: dict[str, Any]) -> Columns | None:
    """Return the columns of a row that can be meant in one way only; None for any other row."""
    named = by_name(row)
    asking = [named[name] for name in ASKING if name in named]
    answering = [named[name] for name in ANSWERING if name in named]
    after = None
    if "instruction" in named:
        beside = [named[name] for name in AFTER_INSTRUCTION if name in named]
        asking = [key for key in asking if key not in beside]
        if len(beside) == 1:
            after = beside[0]
    if len(asking) != 1 or len(answering) != 1:
        return None
    if any(name in named and named[name] != after for name in PASSAGES if name != "text"):
        return None
    (question,), (answer,) = asking, answering
    if not isinstance(row[question], str) or not isinstance(row[answer], str):
        return None
    if (after and not isinstance(row[after], str)) or not _repeats(row, named, answer):
        return None
    return Columns(question, after, answer)


def asks_or_answers(row: dict[str, Any]) -> bool:
    """Whether a row has a column that asks or answers, by its name."""
    return not by_name(row).keys().isdisjoint((*ASKING, *ANSWERING))


def by_name(row: dict[str, Any]) -> dict[str, str]:
    """Return the columns that are not null, by their names in small letters."""
    return {key.lower(): key for key, value in row.items() if value is not None}


def _repeats(row: dict[str, Any], named: dict[str, str], answer: str) -> bool:
    """Whether a column ``text``, if there is one, is the row once more, as Alpaca has it."""
    text = row.get(named.get("text", ""))
    return text is None or (isinstance(text, str) and row[answer] in text)


def joined_question(row: dict[str, Any], columns: Columns) -> str:
    """Return the question of a row: the instruction, and its input after an empty line."""
    parts = [row[columns.question], row[columns.after] if columns.after else ""]
    return "\n\n".join(part for part in parts if part.strip())


def as_prompt_and_completion(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its question and answer as ``prompt`` and ``completion``, if it has them.

    Other rows come back as they are.
    """
    columns = question_and_answer(row)
    known = {"messages", "conversations", "completion"}
    if columns is None or known & row.keys():
        return row
    beside = _beside(row, columns)
    return {
        **beside,
        "prompt": joined_question(row, columns),
        "completion": row[columns.answer],
    }


def _beside(row: dict[str, Any], columns: Columns) -> dict[str, Any]:
    named = by_name(row)
    read = {*columns, named.get("text")}
    beside = {key: value for key, value in row.items() if key not in read and value is not None}
    system = beside.pop(named.get("system_prompt", ""), None)
    if system is not None and beside.get("system") is None:
        beside["system"] = system
    return beside


def as_messages(row: dict[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """Return the row of messages that a question and its answer are, and where each one stands.

    Turns in ``history``, pairs of a question and an answer, stand before them and are trained too,
    as the tools do that write it.

    Raises:
        DataError: One of them is empty, or no text.
    """
    columns = question_and_answer(row)
    assert columns is not None  # the format was recognised by them
    beside = _beside(row, columns)
    answer = {"role": "assistant", "content": take_text(row[columns.answer], source, "the answer")}
    answer |= {name: beside.pop(name) for name in THINKING if name in beside}
    for name, said in ((columns.question, joined_question(row, columns)), (columns.answer, None)):
        if not (row[name] if said is None else said).strip():
            raise DataError(f"{source}: {name} is empty; add its text, or remove the row")
    messages = _history(beside.pop(_HISTORY, None), source)
    places = [f"{_HISTORY}[{number // 2}]" for number in range(len(messages))]
    messages += [{"role": "user", "content": joined_question(row, columns)}, answer]
    places += [columns.question, columns.answer]
    return {**beside, "messages": messages}, places


def _history(value: object, at: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    messages: list[dict[str, Any]] = []
    for turn in value if isinstance(value, list) else [value]:
        if not (isinstance(turn, list) and len(turn) == 2):
            raise DataError(
                f"{at}: {_HISTORY} holds {kind(turn)}; expected pairs of a question and its answer"
            )
        messages += [
            {"role": role, "content": said}
            for role, said in zip(("user", "assistant"), turn, strict=True)
        ]
    return messages
