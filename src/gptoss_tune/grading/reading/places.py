r"""Where in a text the answer stands: boxed, behind words that announce it, or bold.

A model explains, and the explanation holds numbers and letters too. What marks the answer is, from
the strongest on: ``\boxed{42}``; ``#### 42``, ``Answer: 42``, ``the answer is 42`` and the same in
some other languages, up to the end of the sentence; ``**42**``. Graders of numbers, of choices and
of mathematics look there in this order, and each says what it does where several marks disagree.
"""

from __future__ import annotations

import re
from typing import Final

_MOST: Final = 64
"""Places of one sort; a text with more marks nothing."""
_BOX: Final = re.compile(r"\\f?boxed\s{0,3}\{")
_BRACE: Final = re.compile(r"(?<!\\)[{}]")
_LONGEST_BOX: Final = 4_000
_ANSWER: Final = (
    r"(?:(?<!\w)(?:answer|antwort|lösung|ergebnis|réponse|respuesta|risposta|resposta|ответ)"
    r"|答案|答え|答|정답|답|คำตอบ)"
)
_IS: Final = r"(?:(?:is|are|equals|would\sbe|ist|lautet|est|es|è|é)(?!\w)|是|为|は|는|은|คือ)"
_MARKER: Final = re.compile(
    rf"\#\#\#\#\s|{_ANSWER}(?:s|\(s\))?"
    rf"(?:[*_\s]{{0,4}}[:=：≈](?![=:])|(?:\s[^.!?\n:=]{{0,60}}?)??(?:\s|(?<=[案え答답บ])){_IS}\s?:?|[*_]{{0,2}}\s?\n)",
    re.IGNORECASE,
)
# What explains an answer begins there; the words that also ask or compare need their comma.
_ASIDE: Final = re.compile(
    r"\s(?:because|since|weil|denn|car|parce\sque|puisque|porque|perché)\s.*"
    r"|,\s(?:which|(?:and\s)?(?:that|this)\sis|while|where|whereas|was|da|wobei|ce\squi|que|lo\sque|ya\sque|che|o\sque)\s.*"
    r"|[,，、]\s?(?:因为|因為|由于|なぜなら|왜냐하면).*",
    re.IGNORECASE | re.DOTALL,
)
_BOLD: Final = re.compile(r"\*\*([^*\n]{1,200})\*\*|__([^_\n]{1,200})__")
_DISPLAYED: Final = re.compile(r"(?<!\\)\\\[([^$]{1,2000}?)\\\]|\$\$([^$]{1,2000})\$\$")
_SENTENCE_END: Final = re.compile(r"[.!?](?=[*_\"'”)\]]{0,3}(?:\s|$))|[。！？]|\n")
_LEADING: Final = re.compile(r"[\s*_:：=>#`-]*\n\s*|[\s*_:：`]+")


def displayed_in_line(text: str) -> str:
    r"""Return a text with each ``\[...\]`` and ``$$...$$`` on one line.

    A formula that stands on lines of its own then belongs to the sentence that leads to it; a full
    stop or comma at its end is the sentence's.
    """
    return _DISPLAYED.sub(_in_line, text)


def _in_line(formula: re.Match[str]) -> str:
    inner = " ".join((formula[1] or formula[2] or "").split()).rstrip(".,; ")
    return rf"\[{inner}\]" if formula[1] else f"$${inner}$$"


def boxed(text: str) -> list[str]:
    r"""Return what stands in each ``\boxed{...}``, braces matched; an open box ends the search."""
    found: list[str] = []
    for begin in _BOX.finditer(text):
        depth = 1
        for brace in _BRACE.finditer(text, begin.end(), begin.end() + _LONGEST_BOX):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                found.append(text[begin.end() : brace.start()])
                break
        else:
            break
        if len(found) > _MOST:
            return []
    return found


def announced(text: str) -> list[str]:
    """Return what follows each announcement of the answer, up to the end of its sentence."""
    found: list[str] = []
    for marker in _MARKER.finditer(text):
        begin = marker.end()
        if (blank := _LEADING.match(text, begin)) is not None:
            begin = blank.end()
        end = _SENTENCE_END.search(text, begin)
        said = text[begin : len(text) if end is None else end.start()]
        if said.strip(" *_"):
            found.append(said)
        if len(found) > _MOST:
            return []
    return found


def without_aside(place: str) -> str:
    """Return a sentence without what explains its answer: ``5, which is 2 more than 3`` is 5."""
    return _ASIDE.sub("", place)


def bold(text: str) -> list[str]:
    """Return what is set in bold, each within its line."""
    found = [match[1] or match[2] for match in _BOLD.finditer(text)]
    return found if len(found) <= _MOST else []


def sentences(text: str) -> list[str]:
    """Return a text cut at the ends of its sentences and lines, without blank ones.

    A full stop between digits ends none.
    """
    cut, begin = [], 0
    for end in _SENTENCE_END.finditer(text):
        cut.append(text[begin : end.start()])
        begin = end.end()
    cut.append(text[begin:])
    return [sentence for sentence in cut if sentence.strip()]


_LIST_MARK: Final = re.compile(r"^[ \t]*(?:\*\*)?(\d{1,3})[.)](?=[ \t]+\S|\*\*)", re.MULTILINE)
_BULLET: Final = re.compile(r"^[ \t]*[-*•+–][ \t]+", re.MULTILINE)
_LABEL: Final = re.compile(
    r"\b(?:step|part|case|option|question|figure|table|equation|example|method|line|schritt|étape|"
    r"paso)\s+\d{1,3}\b(?!\s?[=+*/×])",
    re.IGNORECASE,
)


def without_numbering(text: str) -> str:
    """Return a text without ``1.`` ``2.`` before its lines, bullets, and labels such as Step 3.

    Numbers before lines count as numbering where they are 1, 2 and so on; a lone ``42. ...`` stays.
    """
    marks = [int(match[1]) for match in _LIST_MARK.finditer(text)]
    if len(marks) > 1 and all(
        a == 1 or a == b + 1 for a, b in zip(marks, [0, *marks], strict=False)
    ):
        text = _LIST_MARK.sub("", text)
    if "\n" in text.strip():
        text = _BULLET.sub("", text)
    return _LABEL.sub("", text)
