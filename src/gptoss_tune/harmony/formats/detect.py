"""Which format a row is in, told by its columns.

``messages`` is OpenAI chat, or harmony's own when a message names its channel; ``conversations`` is
ShareGPT; then ``prompt`` with ``completion``, ``chosen`` with ``rejected`` (preference pairs) and
``prompt`` alone. Anything else goes through the column templates of ``sources/columns.py``. A
setting that names the format was the alternative: it is one more thing to be wrong, and no two of
these formats share their columns.
"""

from __future__ import annotations

from typing import Any

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import shown
from gptoss_tune.harmony.formats.harmony import is_native


def format_of(row: dict[str, Any], source: str) -> str:
    """Return ``native``, ``chat``, ``sharegpt``, ``completion``, ``preference`` or ``prompt``.

    Raises:
        DataError: No column of a known format is there.
    """
    there = {key for key, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= there:
        return "preference"
    if "messages" in there:
        return "native" if is_native(row["messages"]) else "chat"
    if "conversations" in there:
        return "sharegpt"
    if "prompt" in there:
        return "completion" if "completion" in there else "prompt"
    columns = ", ".join(shown(key) for key in list(row)[:8]) or "none"
    raise DataError(
        f"{source}: no known columns (got {columns}); expected messages, conversations, or prompt "
        "with completion: map other columns with a template in the recipe (columns)"
    )
