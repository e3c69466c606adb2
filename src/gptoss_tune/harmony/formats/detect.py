"""Which format a row is in, told by its columns.

``messages`` is OpenAI chat, or harmony's own when a message names its channel; ``conversations`` is
ShareGPT; then ``prompt`` with ``completion``, ``chosen`` with ``rejected`` (preference pairs) and
``prompt`` alone. Anything else goes through the column templates of ``sources/columns.py``. A
setting that names the format was the alternative: it is one more thing to be wrong, and no two of
these formats share their columns.
"""

from __future__ import annotations

from typing import Any, Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import shown, take_listed
from gptoss_tune.harmony.formats.harmony import is_native


def format_of(row: dict[str, Any], source: str, *, templates: bool = True) -> str:
    """Return ``native``, ``chat``, ``sharegpt``, ``completion``, ``preference`` or ``prompt``.

    Args:
        row: The parsed row.
        source: ``file:line``.
        templates: Whether the recipe can map its columns, as it can those of training data.

    Raises:
        DataError: No column of a known format is there.
    """
    there = {key for key, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= there:
        return "preference"
    for column, name in (("messages", "chat"), ("conversations", "sharegpt")):
        if column in there:
            return "native" if is_native(take_listed(row[column], source, column)) else name
    if "prompt" in there:
        return "completion" if "completion" in there else "prompt"
    columns = ", ".join(shown(key) for key in list(row)[:8]) or "none"
    if not templates:
        raise DataError(
            f"{source}: no known columns (got {columns}); expected messages, conversations or "
            "prompt: rename the column of the question to prompt"
        )
    raise DataError(
        f"{source}: no known columns (got {columns}); expected messages, conversations, or prompt "
        f"with completion: map other columns with a template in the recipe (columns{_such_as(row)})"
    )


_QUESTIONS: Final = ("instruction", "question", "query", "problem", "user", "input")
_ANSWERS: Final = ("output", "answer", "response", "solution", "assistant", "target")


def _such_as(row: dict[str, Any]) -> str:
    """Return the templates for a row whose columns say what they are."""
    asked = next((key for key in _QUESTIONS if isinstance(row.get(key), str)), None)
    answer = next((key for key in _ANSWERS if isinstance(row.get(key), str)), None)
    if asked is None or answer is None:
        return ""
    prompt = f"{{{{ {asked} }}}}"
    if asked == "instruction" and "input" in row:
        prompt += "{% if input %} {{ input }}{% endif %}"
    return f': {{prompt: "{prompt}", completion: "{{{{ {answer} }}}}"}}'
