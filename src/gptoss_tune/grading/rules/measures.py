"""Words, sentences, paragraphs and marks of a text, as the rules count them.

A word is a run of letters and digits; hyphens and apostrophes inside belong to it, so ``don't`` and
``well-known`` are one each (IFEval counts two). A sentence ends with ``.``, ``!`` or ``?`` before a
blank or the end of its line, and with ``。``, ``！`` or ``？``, but not behind an initial or an
abbreviation, nor inside of a sentence that quotes (``“Hello!” he said.``); a line that holds words
ends its last sentence without a mark, too.
"""

from __future__ import annotations

import re
from typing import Final

from gptoss_tune.grading.reading.scripts import UNSPACED

_OF_WORD: Final = rf"[^\W_{UNSPACED}]"
_UNSPACED: Final = re.compile(f"[{UNSPACED}]")
_WORD: Final = re.compile(r"\w+(?:['’\-\u2010\u2011]\w+)*")
_MARK: Final = re.compile(
    r"[.!?]{0,9}[。！？][.!?。！？]*[\"'”’」』）)\]*_]*|[.!?]+[\"'”’)\]*_]*(?=\s|$)"
)
_SPEECH_GOES_ON: Final = re.compile(rf"(?<=[\"'”’」』])(?:\s+(?=[a-zß-öø-ÿа-яё])|(?=[{UNSPACED}]))")
"""Behind a mark inside of quotes, the sentence that quotes: “Hello!” he said."""
_ABBREVIATION: Final = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|cf|Fig|approx|p\.s|p\.p\.s))\.$",
    re.IGNORECASE,
)
_NUMBER_SIGN: Final = re.compile(r"\b(?:No|Nr)\.$", re.IGNORECASE)
_BEHIND_NUMBER_SIGN: Final = re.compile(r"\s+\d")
_LETTER: Final = re.compile(r"(?<!\w)[^\W\d_]\.$")
_BEHIND_SMALL: Final = re.compile(r"\s+(?:[a-zß-öø-ÿа-яё\d]|[^\W\d_]\.)")
_BEGINS: Final = re.compile(
    r"\s+(?:I|It|He|She|We|They|You|The|This|That|These|Those|An?|In|On|At|But|And|So|If|When|There|"
    r"Here|My|Our|His|Her|Its|Their|Then|Now|Not|No|Yes|What|Why|How|Who|As|For|With|After|Before|"
    r"All|Some|Er|Sie|Es|Wir|Der|Die|Das|Ein|Eine|Il|Elle|Le|La|Les|El|Los)(?![\w.])"
)
"""Words that begin a sentence behind ``plan B.``; another name follows an initial."""
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
        end = len(line.rstrip())
        for mark in _MARK.finditer(line):
            if mark.end() < end and _goes_on(line, begin, mark):
                continue
            found.append(line[begin : mark.end()])
            begin = mark.end()
        found.append(line[begin:])
    return [sentence.strip() for sentence in found if _WORD.search(sentence)]


def _goes_on(line: str, begin: int, mark: re.Match[str]) -> bool:
    """Return whether a sentence goes on behind a mark: an abbreviation, an initial, or speech."""
    start, end = max(begin, mark.start() - 8), mark.start() + 1
    if _SPEECH_GOES_ON.match(line, mark.end()) or _ABBREVIATION.search(line, start, end):
        return True
    if _NUMBER_SIGN.search(line, start, end):
        return _BEHIND_NUMBER_SIGN.match(line, mark.end()) is not None
    letter = _LETTER.search(line, start, end)
    if letter is None:
        return False
    if letter.start() <= begin + 2 and not line[begin : letter.start()].strip():
        return True  # the letter of a list, or the first of several initials
    if letter[0].islower():
        return _BEHIND_SMALL.match(line, mark.end()) is not None
    return _BEGINS.match(line, mark.end()) is None


def paragraphs(text: str, separator: str = "blank line") -> list[str]:
    """Return the paragraphs of a text, separated by blank lines, or by lines of ``***``."""
    between = _STARS_LINE if separator == "***" else _BLANK_LINE
    return [part.strip() for part in between.split(text) if part.strip()]


def lines(text: str) -> list[str]:
    """Return the lines of a text that hold anything."""
    return [line for line in text.splitlines() if line.strip()]


def occurrences(text: str, keyword: str) -> int:
    """Return how often a keyword stands in a text as whole words, whatever its case."""
    parts = typed(keyword).casefold().split()
    inner = r"\s+".join(map(re.escape, parts))
    # Beside a letter of a script without blanks a word may begin or end anywhere.
    begin = "" if _UNSPACED.match(parts[0][0]) else rf"(?<!{_OF_WORD})"
    end = "" if _UNSPACED.match(parts[-1][-1]) else rf"(?!{_OF_WORD})"
    return len(re.findall(f"{begin}{inner}{end}", typed(text).casefold()))
