r"""The grader ``number``: the number that the final text gives as its answer, compared by value.

Which number of a text counts, in this order; the first rule that finds a place decides, and where
this place holds different numbers the answer does not pass and the note lists them:

1. what is ``\boxed{}``, every box with the same number;
2. what follows ``####``, ``Answer:`` or ``the answer is``, up to the end of the sentence, every one
   with the same number; what stands in parentheses, or explains (``because``, ``, which``), is
   looked at only where nothing else is there;
3. the only number of the text, however often it is written;
4. what is bold and is nothing but a number with its unit: ``**42 km**``; else the number of what
   is bold in the last line;
5. in the last sentence that holds a number, what stands alone behind an equals sign (``17 * 23 =
   391``), or its only number where it begins with a conclusion (``So``, ``Therefore``, ``In
   total``);
6. with the setting ``read: last`` the last number of the text.

A number that the text denies (``not 42 but``, ``42 is wrong``) is none of its numbers. In a
sentence with an equals sign the numbers behind it count: ``the answer is 6 * 7 = 42`` is 42.
Numbers in words are not read: ask for digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Final

from gptoss_tune.errors import DataError
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.grader import Verdict
from gptoss_tune.grading.reading.denied import denial
from gptoss_tune.grading.reading.numerals import DIGITS, Numeral, numerals, typed
from gptoss_tune.grading.reading.places import (
    announced,
    bold,
    boxed,
    displayed_in_line,
    sentences,
    without_aside,
    without_numbering,
)
from gptoss_tune.grading.reading.scripts import SPACED
from gptoss_tune.grading.reading.settings import (
    LONGEST_ANSWER,
    TOO_LONG,
    refuse_unknown,
    take_amount,
    take_choice,
    take_flag,
    take_texts,
)
from gptoss_tune.grading.reading.units import begins_with_unit, currency_before
from gptoss_tune.harmony.fields import shown

_PARENTHESES: Final = re.compile(r"\([^()]{0,200}\)")
_EQUALS: Final = re.compile(r"(?<![<>!=])[=≈](?!=)|⇒|→|\\implies|\\Rightarrow|\\rightarrow")
_CONCLUDES: Final = re.compile(
    r"[\s*_#>]*(?:so|therefore|thus|hence|consequently|in\stotal|altogether|in\sall|that\smakes|"
    r"this\smeans|finally|∴|also|daher|insgesamt|donc|por\s(?:lo\s)?tanto|entonces|итого|所以|因此)(?!\w)",
    re.IGNORECASE,
)
_AROUND: Final = r"[\s*_$\\()\[\]{}≈~.,;:!`\u202f]*"
_LONE_BEFORE: Final = re.compile(rf"{_AROUND}(?:[^\d=≈]{{0,40}}[=≈:])?{_AROUND}")
_LONE_BEHIND: Final = re.compile(
    rf"{_AROUND}(?:[^\W\d_°]{{1,20}}[²³/°^\s.\u202f-]*\d?\s?){{0,3}}°?{_AROUND}"
)
_UNIT_WORD: Final = re.compile(r"[\s*_$\\)}\]~\u202f-]{0,4}([^\W\d_]+|[°%€£¥₹′″'\"])")
_NO_UNITS: Final = frozenset(
    (
        *("in", "and", "or", "is", "are", "was", "of", "on", "at", "by", "for", "to", "from"),
        *("with", "since", "because", "as", "which", "so", "total", "altogether", "when", "if"),
        *("that", "we", "it", "the", "a", "an", "each", "more", "less", "left", "remaining"),
        *("です", "でした", "だ", "である", "입니다", "이다", "예요", "이에요", "ครับ", "ค่ะ"),
    )
)
_DENIED: Final = denial(
    rf"(?<!{SPACED})(?<![.,/])(?:[-+]\s?)?(?:[$€£¥]\s?)?\d(?:[\d.,/^\u202f]{{0,60}}\d)?(?!\d)(?:\s?%)?"
)


@dataclass(frozen=True)
class Number:
    """Passes when the number read from the final text is one of the ``answers``.

    Attributes:
        answers: Right numbers, as the row has them.
        tolerance: Largest difference, in the answer's own unit.
        relative_tolerance: Largest difference as a share of the right number.
        unit: Spellings of the unit; a number with another unit behind it does not pass, one with
            none does. Empty: units are not looked at.
        decimal_comma: ``3,14`` is a little over three, and ``1.234`` over a thousand.
        read: ``marked`` or ``last``, see the module.
    """

    answers: tuple[str, ...]
    tolerance: float = 0.0
    relative_tolerance: float = 0.0
    unit: tuple[str, ...] = ()
    decimal_comma: bool = False
    read: str = "marked"

    kind: ClassVar[str] = "number"
    seconds: ClassVar[float] = 0.0

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        text = " | ".join(self.answers) + (f" {self.unit[0]}" if self.unit else "")
        if self.tolerance:
            text += f" ± {self.tolerance:g}"
        return f"{text} ± {self.relative_tolerance:.3g} of it" if self.relative_tolerance else text

    def judge(self, given: Given, seconds: float) -> Verdict:
        """Read the final text and compare."""
        if given.final is None:
            return Verdict(False)
        if len(given.final) > LONGEST_ANSWER:
            return Verdict(False, TOO_LONG)
        found = self.find(given.final)
        if isinstance(found, str):
            return Verdict(False, found)
        passed = any(self._equal(found, self._own(answer)) for answer in self.answers)
        return Verdict(passed, label=found.shown)

    def find(self, final: str) -> Numeral | str:
        """Return the number that a text gives as its answer, or why it gives none."""
        text = without_numbering(displayed_in_line(typed(final)))
        text = _DENIED.sub(" ", text)
        told = announced(text)
        for places in (boxed(text), [without_aside(place) for place in told], told):
            held = [number for place in places for number in self._told(place)]
            if held:
                return self._one(held)
        if boxed(text):
            return "the box holds no number"
        everything = self._with_unit(text, numerals(text, decimal_comma=self.decimal_comma))
        if not everything:
            return "there is no number in the answer"
        if len(_distinct(everything)) == 1:
            return self._one(everything)
        lone = [number for place in bold(text) for number in self._lone(place)]
        if lone:
            return self._one(lone)
        last_line = text.strip().splitlines()[-1]
        told = [number for place in bold(last_line) for number in self._told(place)]
        if told:
            return self._one(told)
        concluded = self._concluded(text)
        if concluded:
            return self._one(concluded)
        if self.read == "last":
            return self._one(everything[-1:])
        several = ", ".join(number.shown for number in _distinct(everything)[:6])
        return f"several numbers, and none is marked as the answer: {several}"

    def _told(self, place: str) -> list[Numeral]:
        """Return the numbers that a sentence gives: those behind an equals sign, if it has one."""
        outside = _PARENTHESES.sub(" ", place)
        for text in (outside, place):
            parts = _EQUALS.split(text)
            behind = [numerals(part, decimal_comma=self.decimal_comma) for part in parts]
            lone = [
                n
                for part, ns in zip(parts[1:], behind[1:], strict=True)
                if len(ns) == 1
                for n in self._with_unit(part, ns)
            ]
            found = lone or [
                n for part, ns in zip(parts, behind, strict=True) for n in self._with_unit(part, ns)
            ]
            if found:
                return found
        return []

    def _concluded(self, text: str) -> list[Numeral]:
        """Return the number that the last sentence with one comes to; nothing where unclear."""
        for sentence in reversed(sentences(text)):
            numbers = numerals(sentence, decimal_comma=self.decimal_comma)
            if not numbers:
                continue
            if _EQUALS.search(sentence):
                told = self._told(sentence)
                return told if len(_distinct(told)) == 1 else []
            alone = self._with_unit(sentence, numbers)
            return alone if _CONCLUDES.match(sentence) and len(_distinct(alone)) == 1 else []
        return []

    def _lone(self, place: str) -> list[Numeral]:
        numbers = numerals(place, decimal_comma=self.decimal_comma)
        if len(numbers) != 1:
            return []
        before, behind = place[: numbers[0].start], place[numbers[0].end :]
        is_lone = _LONE_BEFORE.fullmatch(before) and _LONE_BEHIND.fullmatch(behind)
        return self._with_unit(place, numbers) if is_lone else []

    def _with_unit(self, text: str, numbers: list[Numeral]) -> list[Numeral]:
        """Return those with the unit where any has it; one with another unit is no number."""
        if not self.unit:
            return numbers
        units = {unit.casefold() for unit in self.unit}
        carried, plain = [], []
        for number in numbers:
            written = text[number.start : number.end]
            behind = _UNIT_WORD.match(text, number.end)
            rest = text[behind.start(1) : behind.start(1) + 40].casefold() if behind else ""
            money = currency_before(written, text[number.end :])
            has_unit = any(begins_with_unit(rest, u) or u in written.casefold() for u in units)
            if has_unit or units & money:
                carried.append(number)
            elif money:
                plain.append(_unreadable(number))
            elif behind is None or behind[1].casefold() in _NO_UNITS or number.percent:
                plain.append(number)
            else:
                plain.append(_unreadable(number))
        return carried or plain

    def _one(self, numbers: Iterable[Numeral]) -> Numeral | str:
        distinct = _distinct(numbers)
        if len(distinct) > 1:
            listed = ", ".join(number.shown for number in distinct[:6])
            return f"several numbers where the answer stands: {listed}"
        if distinct[0].value.is_nan():
            unit = f", or one with another unit than {self.unit[0]}" if self.unit else ""
            return f"what stands where the answer should is no number that can be read{unit}"
        return distinct[0]

    def _own(self, answer: str) -> Numeral:
        found = self.find(answer)
        assert isinstance(found, Numeral), "read_number has read it"
        return found

    def _equal(self, found: Numeral, own: Numeral) -> bool:
        """Compare; see ``docs/evaluation.md`` on percent signs."""
        written = own.value
        if own.percent or "%" in self.unit:
            hundredfold = DIGITS.scaleb(found.value, 2)
            return self._close(found.value, written) or (
                not found.percent and self._close(hundredfold, written)
            )
        if found.percent:
            # 75 % of something is 0.75; for an answer from 2 on it may be the question's own unit.
            as_unit = written.copy_abs() >= 2 and self._close(found.value, written)
            return as_unit or self._close(found.worth, written)
        return self._close(found.value, written)

    def _close(self, value: Decimal, right: Decimal) -> bool:
        if value == right:
            return True
        share = DIGITS.multiply(Decimal(repr(self.relative_tolerance)), right.copy_abs())
        allowed = max(Decimal(repr(self.tolerance)), share)
        return allowed > 0 and DIGITS.subtract(value, right).copy_abs() <= allowed


def _unreadable(number: Numeral) -> Numeral:
    return Numeral(Decimal("NaN"), False, number.start, number.end)


def _distinct(numbers: Iterable[Numeral]) -> list[Numeral]:
    """Return each number once; every unreadable one differs from all others."""
    kept: list[Numeral] = []
    for number in numbers:
        same = (n.value == number.value and n.percent == number.percent for n in kept)
        if not any(same):
            kept.append(number)
            if len(kept) > 16:
                break
    return kept


def read_number(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> Number:
    """Return the grader of a number: a JSON number, a text that gives one, or a list of these.

    A text is read as an answer is, so a worked solution that ends in ``#### 42`` will do.

    Raises:
        DataError: No number can be read, or a setting cannot be used.
    """
    known = ("tolerance", "relative_tolerance", "unit", "decimal_comma", "read")
    refuse_unknown(settings, known, source, Number.kind)
    what = f"grader {Number.kind}"
    unit = settings.get("unit")
    grader = Number(
        (),
        tolerance=take_amount(settings, "tolerance", source, what),
        relative_tolerance=take_amount(settings, "relative_tolerance", source, what),
        unit=() if unit is None else take_texts(unit, source, f"{what}.unit"),
        decimal_comma=take_flag(settings, "decimal_comma", source, what),
        read=take_choice(settings, "read", ("marked", "last"), source, what),
    )
    answer = row.get("answer")
    listed = answer if isinstance(answer, list) else [answer]
    if not listed:
        raise DataError(f"{source}: answer is an empty list; give the right number")
    texts = [_as_text(value, source, grader) for value in listed]
    fields = {name: getattr(grader, name) for name in known}
    return Number(tuple(texts), **fields)


def _as_text(value: Any, source: str, grader: Number) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return str(value).replace(".", ",") if grader.decimal_comma else str(value)
    if not isinstance(value, str) or len(value) > LONGEST_ANSWER:
        raise DataError(f"{source}: answer is {shown(value)}; grader number expects a number")
    found = grader.find(value)
    if isinstance(found, str):
        raise DataError(
            f"{source}: answer is {shown(value)}, which grader number cannot read ({found}); write "
            "the number alone, with digits"
        )
    written = typed(value).strip()
    if len(written) <= 40:
        return written
    return found.exact.replace(".", ",") if grader.decimal_comma else found.exact
