"""Does the final answer say what the analysis came to? Told by the answer that the analysis names.

The last "the answer is X" of the analysis is taken where X reads as an answer of the grader's kind:
a number alone or with the unit that the final answer has too, a letter or the text of an option;
of other texts only an accepted one, and yes for no. "The answer should be short" names none. X is
given to the question's own grader as if it were the final answer; so is the final. They contradict
each other where one of the two is right and the other wrong and neither contains the other, or
where both are one number or one letter, and not the same. A second model as the judge was the
alternative; it reads more and cannot be checked.

Limits. Only a chain of thought that names its answer in such words, in English and in digits, is
looked at; one that corrects itself without them is not. What is found is close to certain, what is
not found may be there: among texts that are no number and no letter, a wrong one in the analysis
before a right answer is not told from prose.
"""

from __future__ import annotations

import re
from typing import Final

from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.choice import Choice
from gptoss_tune.grading.grader import Grader
from gptoss_tune.grading.maths import Maths
from gptoss_tune.grading.number import Number
from gptoss_tune.grading.reading.numerals import Numeral, numerals, typed
from gptoss_tune.grading.reading.places import boxed
from gptoss_tune.grading.reading.plain import normalized
from gptoss_tune.grading.text import Exact

_NAMED: Final = re.compile(
    r"\b(?:final answer|correct answer|answer|result|choice|option)"
    r"(?: is| =|:| should be| must be| would be)\s*:?\s*(?=(?P<answer>[^\n]{1,120}))",
    re.IGNORECASE,
)
_CLAUSE: Final = re.compile(r"[.,;:?!\n]\s")
_END: Final = re.compile(
    r"(?<=[^0-9])[.;](?:\s|$)|(?<=[0-9])[.;](?:\s|$)|[,!?](?:\s|$)|\s(?:\(|[-–](?!\s?[0-9]))"
)
_ALONE: Final = re.compile(r"[(\[]?([a-j])[)\]]?")
_LETTER: Final = re.compile(
    r"(?:(?:option|choice|answer|letter) )?[(\[]?([a-j])[)\]]?(?:[:.)] .*)?"
)
_SAME_KIND: Final = ({"yes", "no"}, {"true", "false"})
_BEFORE: Final = re.compile(r"(?:exactly|simply|just|indeed|still|therefore|thus)\b", re.I)
_ASIDE: Final = re.compile(r"\s(?:because|since|so)\b.*", re.IGNORECASE)
_AROUND: Final = " \u202f~≈*$`\\()[]{}\"'.,:"
_NEGATED: Final = re.compile(r"\b(?:not|n't|never|unless|if|maybe|perhaps|wrong|could)\b", re.I)


def named_answer(analysis: str) -> str | None:
    """Return the last answer that an analysis names; ``None`` where it names none for sure."""
    found = None
    for match in _NAMED.finditer(analysis):
        before = _CLAUSE.split(analysis[max(0, match.start() - 60) : match.start()])[-1]
        text = match["answer"].strip().strip("*$`\"'“”").strip()
        text = text[: end.start()] if (end := _END.search(text)) else text
        text = text.strip().rstrip(".").strip("*$`\"'“”").strip()
        doubted = _NEGATED.search(before) or _NEGATED.search(text)
        # A doubt takes back what was named before it, too.
        found = None if doubted or not text else text
    return found


def contradicts(grader: Grader, given: Given) -> bool | None:
    """Return whether the final answer is another than the analysis names; ``None``: not known.

    Args:
        grader: Of the question; it reads both.
        given: The answer, channels apart.
    """
    named = named_answer(given.analysis)
    if named is None or given.final is None or not given.final.strip():
        return None
    thought = _thought(grader, named, given.final)
    if thought is None and isinstance(grader, Number | Choice):
        return None  # it says something about the answer
    right = [
        grader.judge(Given(text), grader.seconds).passed for text in (thought or named, given.final)
    ]
    if all(right):
        return False
    if thought is None:
        return right[0] and not stands_in(normalized(named), normalized(given.final))
    comma = isinstance(grader, Number) and grader.decimal_comma
    if own := numerals(typed(thought), decimal_comma=comma):
        if _has_number(typed(given.final), own[0], comma):
            return False
        return right[0] != right[1] or _number(given.final, "", comma) is not None
    said = normalized(given.final)
    lone, letter = _ALONE.fullmatch(said), _letter(thought)
    if lone is not None and letter is not None:
        return lone[1] != letter
    if stands_in(thought, said) or stands_in(said, thought):
        return False
    return right[0] != right[1]


def stands_in(part: str, whole: str) -> bool:
    """Return whether a text stands in another by itself: 7 neither in -7 nor in 7.5 or 17."""
    return (
        re.search(rf"(?<!\w)(?<!\d[.,])(?<!(?<!\w)-){re.escape(part)}(?![.,]?\d)(?!\w)", whole)
        is not None
    )


def _thought(grader: Grader, named: str, final: str) -> str | None:
    """Return the answer in what an analysis names, as the grader's kind has it; else ``None``."""
    plain = normalized(_ASIDE.sub("", named))
    if isinstance(grader, Choice):
        options = [normalized(option) for option in grader.options]
        return plain if plain in options else _letter(plain)
    if isinstance(grader, Number):
        return _number(named, final, grader.decimal_comma)
    if isinstance(grader, Maths):
        return _number(named, final, False)
    if not isinstance(grader, Exact):
        return None
    accepted = [normalized(answer) for answer in grader.answers]
    if any(_number(answer, "", False) is not None for answer in accepted):
        return _number(named, final, False)
    if any(_letter(answer) is not None for answer in accepted):
        return _letter(plain)
    of_its_kind = any(plain in kind and kind.intersection(accepted) for kind in _SAME_KIND)
    return plain if of_its_kind else None


def _letter(plain: str) -> str | None:
    match = _LETTER.fullmatch(plain)
    return None if match is None else match[1]


def _number(text: str, final: str, comma: bool) -> str | None:
    """Return the number that a text is, or comes to; ``None`` where it says more than that.

    What stands behind it is its unit if the final answer has that, too.
    """
    boxes = boxed(text)
    part = _ASIDE.sub("", typed(boxes[-1] if boxes else text).rpartition("=")[2])
    found = numerals(part, decimal_comma=comma)
    if len(found) != 1 or found[0].value.is_nan():
        return None
    before = _BEFORE.sub("", part[: found[0].start].strip(_AROUND)).strip()
    unit = normalized(part[found[0].end :].strip(_AROUND))
    if before or (
        unit and not re.search(rf"(?<![^\W\d]){re.escape(unit)}(?!\w)", normalized(final))
    ):
        return None
    return part[found[0].start : found[0].end]


def _has_number(text: str, own: Numeral, comma: bool) -> bool:
    """Return whether a number stands in a text; a dash and a blank before it are no minus."""
    for other in numerals(text, decimal_comma=comma):
        dashed = re.match(r"-\s", text[other.start : other.end]) is not None
        for value in (other.value, other.value.copy_abs() if dashed else other.value):
            if value == own.value:
                return True
        if other.worth == own.worth:
            return True
    return False
