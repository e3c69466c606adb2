"""Which format a row is in, told by its columns.

``messages`` is OpenAI chat, or harmony's own when a message names its channel; ``conversations`` is
ShareGPT; then ``prompt`` with ``completion``, the other names of a question and its answer
(``plain/instruct.py``), ``prompt`` alone, and raw text (``plain/text.py``). Before them come the
two columns that make a row a preference pair (``PAIRS``), whatever holds its prompt. A ``label``
beside a conversation changes nothing here: it says what the answer is worth, and only to the
methods that ask. Anything else, and what can be meant in two ways, goes through the column
templates of ``sources/columns.py``. A setting that names the format was the alternative: it is one
more thing to be wrong, and no two of these formats share their columns.
"""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import shown, take_listed
from gptoss_tune.harmony.formats.harmony import is_native
from gptoss_tune.harmony.formats.plain.instruct import asks_or_answers, question_and_answer
from gptoss_tune.harmony.formats.plain.text import is_text, target_of
from gptoss_tune.harmony.formats.plain.unknown import unknown_format

PAIRS: Final = {
    "preference": ("chosen", "rejected"),
    "openai_preference": ("preferred_output", "non_preferred_output"),
    "comparison": ("response1", "response2"),
}
"""Formats of preference pairs, and the columns of their two answers."""


def format_of(row: dict[str, Any], source: str, *, templates: bool = True) -> str:
    """Return the name of a row's format.

    It is ``native``, ``chat``, ``sharegpt``, ``completion``, ``instruct``, ``prompt``, ``text`` or
    a name of ``PAIRS``.

    Args:
        row: The parsed row.
        source: ``file:line``.
        templates: Whether the recipe can map its columns, as it can those of training data.

    Raises:
        DataError: No column of a known format is there.
    """
    there = {key for key, value in row.items() if value is not None}
    pair = pair_format(row)
    if pair is not None:
        return pair
    for column, name in (("messages", "chat"), ("conversations", "sharegpt")):
        if column in there:
            return "native" if is_native(take_listed(row[column], source, column)) else name
    if there.issuperset(("prompt", "completion")):
        return "completion"
    if templates and question_and_answer(row) is not None:
        return "instruct"
    if "prompt" in there:
        return "prompt"
    if not templates:
        columns = ", ".join(shown(key) for key in list(row)[:8]) or "none"
        raise DataError(
            f"{source}: no known columns (got {columns}); expected messages, conversations or "
            "prompt: rename the column of the question to prompt"
        )
    if is_text(row) and target_of(row) is None and not asks_or_answers(row):
        return "text"
    raise DataError(unknown_format(row, source))


def pair_format(row: dict[str, Any]) -> str | None:
    """Return the name in ``PAIRS`` of a preference row's format, None for any other row."""
    there = {key for key, value in row.items() if value is not None}
    for name, both in PAIRS.items():
        # Responses with numbers may be anything, unless the row compares them.
        if there.issuperset(both) and (
            name != "comparison" or there & {"context", "overall_preference"}
        ):
            return name
    return None


QUESTIONS: Final = ("instruction", "question", "query", "problem", "user", "input")
"""Names of columns that ask, in sets that have no ``prompt``."""
