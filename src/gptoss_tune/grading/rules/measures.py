"""Words, sentences, paragraphs and marks of a text, as the rules count them.

A word is a run of letters and digits; hyphens and apostrophes inside belong to it, so ``don't`` and
``well-known`` are one each (IFEval counts two). A sentence ends with ``.``, ``!`` or ``?`` before a
blank or the end of its line, but not behind an initial or a usual abbreviation; a line that holds
words ends its last sentence without a mark, too.
"""

from __future__ import annotations

import re
from typing import Final

_WORD: Final = re.compile(r"\w+(?:['’\-\u2010\u2011]\w+)*")
_MARK: Final = re.compile(r"[.!?。！？]+[\"'”’)\]*_]*(?=\s|$)")
_ABBREVIATION: Final = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|cf|No|Fig|approx|p\.s|p\.p\.s)|\b[A-Z])\.$",
    re.IGNORECASE,
)
_BLANK_LINE: Final = re.compile(r"\n[ \t]*\n\s*")
_STARS_LINE: Final = re.compile(r"^[ \t]*\*\*\*[ \t]*$", re.MULTILINE)
_LIST_MARK: Final = re.compile(r"^[ \t]*(?:[-*•+]|\d{1,4}[.)])[ \t]+")
_TYPED: Final = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2212", "-"),
        **dict.fromkeys("\u2018\u2019\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f", " "),
        **dict.fromkeys("\u200b\u2060\ufeff", None),
    }
)


def typed(text: str) -> str:
    """Return a text with hyphens, quotes and blanks as a keyboard has them."""
    return text.translate(_TYPED)


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text."""
    found: list[str] = []
    for line in text.splitlines():
        line, begin = _LIST_MARK.sub("", line), 0
        for mark in _MARK.finditer(line):
            before = max(begin, mark.start() - 8)
            is_short = _ABBREVIATION.search(line, before, mark.start() + 1) is not None
            if is_short and mark.end() < len(line.rstrip()):
                continue
            found.append(line[begin : mark.end()])
            begin = mark.end()
        found.append(line[begin:])
    return [sentence.strip() for sentence in found if _WORD.search(sentence)]


def paragraphs(text: str, separator: str = "blank line") -> list[str]:
    """Return the paragraphs of a text, separated by blank lines, or by lines of ``***``."""
    between = _STARS_LINE if separator == "***" else _BLANK_LINE
    return [part.strip() for part in between.split(text) if part.strip()]


def lines(text: str) -> list[str]:
    """Return the lines of a text that hold anything."""
    return [line for line in text.splitlines() if line.strip()]


def occurrences(text: str, keyword: str) -> int:
    """Return how often a keyword stands in a text as whole words, whatever its case."""
    inner = r"\s+".join(re.escape(part) for part in typed(keyword).casefold().split())
    return len(re.findall(rf"(?<!\w){inner}(?!\w)", typed(text).casefold()))
