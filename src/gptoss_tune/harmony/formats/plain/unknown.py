"""What is said of a row in no known format: the ``columns`` to write, usable as they are.

Of several answers the first one known is named, a passage stands before its question, and of
columns whose names say nothing the first two that hold text are taken: a guess, and called one.
"""

from __future__ import annotations

import re
from typing import Any, Final

from gptoss_tune.harmony.fields import shown
from gptoss_tune.harmony.formats.plain.instruct import (
    AFTER_INSTRUCTION,
    ANSWERING,
    ASKING,
    PASSAGES,
    by_name,
)
from gptoss_tune.harmony.formats.plain.text import TARGETS, is_text, target_of
from gptoss_tune.harmony.reading import SETTINGS, THINKING

_ASKING: Final = (*ASKING, "user", "human", "text")
_ANSWERING: Final = (*ANSWERING, "assistant", "bot", *TARGETS)
_BESIDE: Final = SETTINGS | {*THINKING, "system_prompt", "id", "url", "source", "label", "history"}
"""Columns that are no question and no answer, whatever they hold."""
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_QUOTABLE: Final = re.compile(r"[^'\"\\{}%\x00-\x1f]+")
_KEYWORDS: Final = frozenset(
    {"and", "or", "not", "if", "elif", "else", "in", "is", "true", "false", "none", "for", "import"}
)
_WHERE: Final = "write beside the path, under data.train"


def unknown_format(row: dict[str, Any], source: str) -> str:
    """Return why a row of training data is in no known format, and what to write."""
    got = ", ".join(shown(key) for key in list(row)[:8]) or "none"
    target = target_of(row) if is_text(row) else None
    if target is not None and not by_name(row).keys() & {*ASKING, *ANSWERING}:
        return (
            f"{source}: a text beside {shown(target)} may be a document, or the question of it; "
            f'{_WHERE}, columns: {{text: "{{{{ text }}}}"}} to train on the text, or columns: '
            f"{_written(prompt=_expression('text'), completion=_expression(target))}"
        )
    named = by_name(row)
    asking = [named[name] for name in ASKING if name in named]
    answering = [named[name] for name in ANSWERING if name in named]
    suggested = _suggested(row)
    if asking and answering and suggested:
        return (
            f"{source}: the columns can be meant in several ways (got {got}); {_WHERE}, "
            f"columns: {suggested}, or what you mean"
        )
    if asking and not answering and len(named.keys() - _BESIDE) == 1:
        return (
            f"{source}: the row has {shown(asking[0])} and no answer to it; add one (as "
            f"{', '.join(ANSWERING[:4])}), or remove the row"
        )
    expected = (
        "expected messages, conversations, text, or a question and its answer, as prompt and "
        "completion"
    )
    todo = f"{_WHERE}, such as columns: {suggested}" if suggested else "rename the columns"
    return f"{source}: no known columns (got {got}); {expected}: {todo}"


def _suggested(row: dict[str, Any]) -> str:
    """Return the templates that write a known row; empty where no column can be named."""
    usable = {
        name: key
        for name, key in by_name(row).items()
        if isinstance(row[key], str | int | float) and _QUOTABLE.fullmatch(key)
    }
    asked = [usable[name] for name in _ASKING if name in usable]
    answers = [usable[name] for name in _ANSWERING if name in usable and usable[name] not in asked]
    texts = [
        key for name, key in usable.items() if isinstance(row[key], str) and name not in _BESIDE
    ]
    if asked and answers:
        return _written(prompt=_prompt(usable, asked[0]), completion=_expression(answers[0]))
    others = [key for key in texts if key not in (*asked, *answers)]
    if (asked or answers) and others:  # the other one has a name that says nothing
        question, answer = (asked[0], others[0]) if asked else (others[0], answers[0])
        return _written(prompt=_expression(question), completion=_expression(answer))
    if len(texts) > 1:
        return _written(prompt=_expression(texts[0]), completion=_expression(texts[1]))
    return _written(text=_expression(texts[0])) if texts else ""


def _prompt(usable: dict[str, str], asked: str) -> str:
    after = next((usable[name] for name in AFTER_INSTRUCTION if name in usable), None)
    if asked.lower() == "instruction" and after is not None:
        condition = f"{{% if {_reference(after)} %}}"
        return f"{_expression(asked)}{condition}\\n\\n{_expression(after)}{{% endif %}}"
    passages = [usable[name] for name in PASSAGES if name in usable and usable[name] != asked]
    return "\\n\\n".join(_expression(key) for key in (*passages[:1], asked))


def _written(**columns: str) -> str:
    return "{" + ", ".join(f'{name}: "{template}"' for name, template in columns.items()) + "}"


def _expression(key: str) -> str:
    return f"{{{{ {_reference(key)} }}}}"


def _reference(key: str) -> str:
    """Return how a template names a column, also one whose name is no word."""
    if _WORD.fullmatch(key) and key.lower() not in _KEYWORDS:
        return key
    return f"row['{key}']"
