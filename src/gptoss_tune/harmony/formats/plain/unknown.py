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
_BESIDE: Final = SETTINGS | {
    *THINKING,
    "system_prompt",
    "id",
    "url",
    "source",
    "label",
    "title",
    "history",
}
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
    reference = None if target is None else _reference(target, row[target])
    if (
        target is not None
        and reference is not None
        and not by_name(row).keys() & {*ASKING, *ANSWERING}
    ):
        return (
            f"{source}: a text beside {shown(target)} may be a document, or the question of it; "
            f'{_WHERE}, columns: {{text: "{{{{ text }}}}"}} to train on the text, or columns: '
            f"{_written(prompt=_expression('text'), completion=_expression(reference))}"
        )
    named = by_name(row)
    asking = [named[name] for name in ASKING if name in named]
    suggested = _suggested(row)
    if asking and suggested and not named.keys().isdisjoint(_ANSWERING):
        return (
            f"{source}: the columns can be meant in several ways (got {got}); {_WHERE}, "
            f"columns: {suggested}, or what you mean"
        )
    if asking and not suggested and len(named.keys() - _BESIDE) == 1:
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
    named = by_name(row)
    usable = {
        name: text for name, key in named.items() if (text := _reference(key, row[key])) is not None
    }
    asked = [usable[name] for name in _ASKING if name in usable]
    answers = [usable[name] for name in _ANSWERING if name in usable and usable[name] not in asked]
    if asked and answers:
        return _written(prompt=_prompt(usable, asked[0]), completion=_expression(answers[0]))
    others = [
        text
        for name, text in usable.items()
        if name not in _BESIDE and isinstance(row[named[name]], str)
    ]
    others = [text for text in others if text not in (*asked, *answers)]
    if (asked or answers) and others:  # the other one has a name that says nothing
        question, answer = (asked[0], others[0]) if asked else (others[0], answers[0])
        return _written(prompt=_expression(question), completion=_expression(answer))
    if len(others) > 1:
        return _written(prompt=_expression(others[0]), completion=_expression(others[1]))
    return _written(text=_expression(others[0])) if others and not asked else ""


def _prompt(usable: dict[str, str], asked: str) -> str:
    after = next((usable[name] for name in AFTER_INSTRUCTION if name in usable), None)
    if asked == usable.get("instruction") and after is not None:
        condition = f"{{% if {after} %}}"
        return f"{_expression(asked)}{condition}\\n\\n{_expression(after)}{{% endif %}}"
    passages = [usable[name] for name in PASSAGES if name in usable and usable[name] != asked]
    return "\\n\\n".join(_expression(text) for text in (*passages[:1], asked))


def _written(**columns: str) -> str:
    return "{" + ", ".join(f'{name}: "{template}"' for name, template in columns.items()) + "}"


def _expression(reference: str) -> str:
    return f"{{{{ {reference} }}}}"


def _reference(key: str, value: object) -> str | None:
    """Return how a template names the text of a column; None where it holds none, or no name can.

    A list stands for its first text, and an object for its ``text``, as SQuAD's answers are.
    """
    if not _QUOTABLE.fullmatch(key):
        return None
    is_word = _WORD.fullmatch(key) and key.lower() not in _KEYWORDS
    name = key if is_word else f"row['{key}']"
    if isinstance(value, dict) and "text" in value:
        name, value = f"{name}.text", value["text"]
    if isinstance(value, list) and value:
        name, value = f"{name}[0]", value[0]
    return name if isinstance(value, str | int | float) else None
