r"""What a text says is not the answer: ``not 42 but``, ``42 is wrong``, ``B ist falsch``.

Graders of numbers, of choices and of mathematics leave such parts out before they look for the
answer, so ``The answer isn't 42.`` gives none and ``not $408$ but $409$`` gives 409. A denial
counts where it stands beside what it denies, in English and the usual words of nine languages more.
"""

from __future__ import annotations

import re
from typing import Final

_OPEN: Final = r"[\s*_`$\"'“‘(\[{]{0,6}(?:\\[(\[]\s?)?(?:\\f?boxed\s?\{\s?)?"
_CLOSE: Final = r"(?:\s?\\[)\]])?[)\]}*_`$\"'”’]{0,6}"
_BEFORE: Final = (
    r"(?:(?<!\w)(?:not|never|neither|nor|cannot|unlike|except|rather\sthan|instead\sof|nicht|weder|"
    r"kein(?:e[nmrs]?)?|pas|ni|не|(?:no|non|não)\s(?:es|son|è|é|são)|(?:any|every)thing\sbut)(?!\w)"
    r"|n't(?!\w)|不(?:是|等[于於]|会是|為|为)|并非|ไม่ใช่|≠|!=|\\neq?(?![a-z]))"
    r"(?:\s(?:think|believe|say)(?:\sthat)?\s(?:it(?:'s|\sis)|the\sanswer\sis))?"
    r"(?:\s(?:be|equal|to|exactly|really|actually|necessarily|possibly|the|correct|right|answer)"
    r"(?!\w)){0,3}"
)
_WRONG: Final = (
    r"(?:(?:also|simply|clearly|definitely|all|both)\s)?(?:(?:the|an?)\s)?"
    r"(?:wrong|incorrect[aeo]?s?|false|untrue|impossible|falsch|inkorrekt|faux|fausses?|"
    r"fals[ao]s?|sbagliat[aoei]|errad[ao]s?|ruled\sout|eliminated)(?!\w)"
)
_RIGHT: Final = (
    r"(?:(?:the|die|das|la|une|a|o)\s)?(?:right|correct[aeo]?|true|answer|solution|result|possible|"
    r"richtig\w{0,2}|korrekt|antwort|lösung|ergebnis|bonne|réponse|juste|vraie?|respuesta|solución|"
    r"giust[ao]|risposta|cert[ao]|resposta)(?!\w)"
)
_BEHIND: Final = (
    rf"(?:\s(?:is|was|would\sbe|ist|est|es|è|é)\s(?:{_WRONG}|(?:not|nicht|pas)\s{_RIGHT})"
    rf"|\s(?:isn't|wasn't|n'est\spas|no\ses|non\sè|não\sé|can(?:not|'t)\sbe)\s{_RIGHT}"
    r"|\s?[—–-]?\sне(?:верн|правильн)\w{1,3}"
    r"|\s?(?:不正确|不正確|不[对對]|是[错錯]|[错錯][误誤]|不是(?:正确|答案|[对對]的|正解))"
    r"|\s?(?:[はが](?:答え|正解)?)?(?:では(?:あり|な)|じゃ(?:あり|な))|\s?[はが](?:不正解|間違|誤り|違)"
    r"|\s?[가이는은](?:\s(?:정)?답이)?\s?(?:아니|아닙|아닌|틀[린렸립])|\s?(?:ผิด|ไม่ถูก))"
)
_SEVERAL: Final = (
    rf"\s(?:are|were|sind|sont|son|sono|são)\s(?:{_WRONG}|(?:not|nicht|pas)\s{_RIGHT})"
)
_INSTEAD: Final = r"(?:\s?[,，、;]?\s?(?:(?:but|sondern|mais|sino|bensì)(?:\srather)?(?!\w)|而是))?"
_OR: Final = r",?\s(?:or|nor|oder|noch|ou|ni|o)\s"
_AND: Final = r",?\s(?:and|or|und|oder|et|ou|y|e|o)\s"

_BEFORE_END: Final = re.compile(rf"{_BEFORE}{_OPEN}$", re.IGNORECASE)
_BEHIND_BEGIN: Final = re.compile(rf"{_CLOSE}{_BEHIND}", re.IGNORECASE)


def denial(thing: str) -> re.Pattern[str]:
    """Return what finds the denials of something.

    Args:
        thing: An expression without groups, for one of it.
    """
    return re.compile(
        rf"{_BEFORE}{_OPEN}{thing}(?:{_OR}{_OPEN}{thing}){{0,4}}{_CLOSE}{_INSTEAD}"
        rf"|{thing}{_CLOSE}(?:\s\([^()\n]{{1,80}}\))?{_BEHIND}"
        rf"|{thing}(?:{_CLOSE},\s{_OPEN}{thing}){{0,8}}{_CLOSE}{_AND}{_OPEN}{thing}{_CLOSE}{_SEVERAL}",
        re.IGNORECASE,
    )


def is_denied(text: str, begin: int, end: int) -> bool:
    """Return whether a text denies what stands at a place of it."""
    before = text[max(0, begin - 80) : begin]
    return bool(_BEFORE_END.search(before) or _BEHIND_BEGIN.match(text, end))
