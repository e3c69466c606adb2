r"""Numbers in a text that a model wrote: where they stand and what they are worth, exactly.

``1,234``, ``1 234`` (also with the narrow spaces that gpt-oss writes), ``−5``, ``3/4``, ``2½``,
``\frac{3}{4}``, ``1.5e-3``, ``1.5 × 10⁻³``, ``75 %``, ``$4.50`` and ``2.5 million`` are numbers.
Digits in a word (``x1``), a version (``3.11.2``) and what stands behind ± are none. Everything is
bounded: expressions without nested repetition, arithmetic of 60 digits, no powers but of ten.
"""

from __future__ import annotations

import decimal
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from gptoss_tune.grading.reading.scripts import SPACED

DIGITS: Final = decimal.Context(
    prec=60,
    Emax=decimal.MAX_EMAX,
    Emin=decimal.MIN_EMIN,
    traps=[],
    rounding=decimal.ROUND_HALF_EVEN,
)
"""Arithmetic that ends at once and raises nothing: a result out of range is no number."""
_SHORT: Final = decimal.Context(prec=12, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])
LONGEST_NUMERAL: Final = 1_000
"""Characters; a longer run of digits is not read."""

_FRACTIONS: Final = {
    char: f" {int(top)}/{int(bottom)} "
    for char in "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
    for top, bottom in [unicodedata.normalize("NFKC", char).split("\u2044")]
}
_TYPED: Final = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00a0\u2007\u2008\u2009\u200a\u202f\u205f", "\u202f"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", None),
        **dict.fromkeys("×·⋅∙✕", "×"),
        **dict.fromkeys("⁄∕÷", "/"),
        "％": "%",
        "＝": "=",
        "＋": "+",
        "，": ",",
        "．": ".",
        **{chr(0xFF10 + n): str(n) for n in range(10)},
        **_FRACTIONS,
    }
)
_RAISED: Final = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_RAISED_DIGITS: Final = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_LATEX: Final = (
    (re.compile(r"\{,\}|\\[,;:! ]|(?<=\d)~(?=\d)"), "\u202f"),
    (re.compile(r"\\left|\\right|\\displaystyle|\\quad|\\qquad"), " "),
    (re.compile(r"\\(?:times|cdot)(?![a-z])"), "×"),
    (re.compile(r"\\approx(?![a-z])"), "≈"),
    (re.compile(r"\\pm(?![a-z])"), "±"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname)\s?\{([^{}]*)\}"), r" \1"),
    (
        re.compile(r"(\d?)\s?\\[dt]?frac\s?\{\s?([^{}]{1,80})\}\s?\{\s?([^{}]{1,80})\}"),
        r"\1 \2/\3 ",
    ),
    (re.compile(r"\\[dt]?frac\s?(\d)\s?(\d)"), r" \1/\2 "),
    (re.compile(r"\\([%$#_])"), r"\1"),
    (re.compile(r"\^\s?\{\s?([+-]?\d{1,9})\s?\}"), r"^\1"),
    (re.compile(r"\^?\\circ(?![a-z])|\^\{\\circ\}"), "°"),
)

_SPACE: Final = "[ \u202f]"
_END: Final = r"(?!\d)(?![.,]\d)"
"""Behind digits: neither more of them, nor a point or comma that goes on."""
_POINT: Final = (
    r"(?:[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?"
    rf"|[1-9]\d{{0,2}}(?:{_SPACE}\d{{3}})+(?:\.\d+)?"
    r"|[1-9]\d{0,2}(?:['’_]\d{3})+(?:\.\d+)?"
    rf"|\d+(?:\.\d+)?|\.\d+){_END}"
)
_COMMA: Final = (
    r"(?:[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?"
    rf"|[1-9]\d{{0,2}}(?:{_SPACE}\d{{3}})+(?:,\d+)?"
    r"|[1-9]\d{0,2}(?:['’_]\d{3})+(?:,\d+)?"
    rf"|\d+(?:,\d+)?|,\d+){_END}"
)
_CURRENCY: Final = r"(?:US\$|[$€£¥₹₩₽¢]|USD|EUR|GBP|JPY|CHF)"
_WORDS: Final = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def _expression(body: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?<!{SPACED})(?<!\.)(?:(?P<sign>(?<![\d)])[+-]\s?)?(?:{_CURRENCY}\s?)?(?P<late>-)?"
        rf"(?:(?P<whole>\d{{1,9}}){_SPACE}{{1,2}}(?=\d{{1,9}}/\d))?"
        rf"(?P<body>{body})"
        rf"(?:\s?/\s?(?P<below>\d{{1,40}}(?:\.\d{{1,40}})?)(?!\d))?"
        r"(?:e(?P<e>[+-]?\d{1,9})(?!\d)"
        r"|\s?(?:×|x|\*)\s?10\s?(?:\^|\*\*)\s?\(?(?P<ten>[+-]?\d{1,9})(?!\d)\)?"
        r"|(?:\^|\*\*)\(?(?P<power>[+-]?\d{1,9})(?!\d)\)?)?"
        r"(?![.,/^]\d|\s?/\s?\d|\*\*\d)"
        rf"(?:[ \u202f-](?P<word>{'|'.join(_WORDS)})\b)?"
        r"(?P<percent>\s?%|\s?per\s?cent\b)?"
        r"|(?P<odd>\d[\d.,/^*]*))",
        re.IGNORECASE,
    )


_WITH_POINT, _WITH_COMMA = _expression(_POINT), _expression(_COMMA)


@dataclass(frozen=True)
class Numeral:
    """A number in a text.

    Attributes:
        value: What it is worth, without its percent sign: ``75 %`` is 75. NaN for digits that are
            no number, such as ``3,14`` with a decimal point expected, ``2^10`` or ``3/4/2025``.
        percent: Whether it has one.
        start: Where it begins, currency included.
        end: Where it ends.
    """

    value: Decimal
    percent: bool
    start: int
    end: int

    @property
    def worth(self) -> Decimal:
        """What it is worth with its percent sign: ``75 %`` is 0.75."""
        return DIGITS.scaleb(self.value, -2) if self.percent else self.value

    @property
    def exact(self) -> str:
        """It in full, so that it can be read again."""
        return f"{self.value}%" if self.percent else str(self.value)

    @property
    def shown(self) -> str:
        """It as a message shows it."""
        if self.value.is_nan():
            return "what is no number"
        short = _SHORT.normalize(self.value)
        text = f"{short:f}" if -7 < short.adjusted() < 20 else f"{short:e}"
        return f"{text}%" if self.percent else text


def typed(text: str) -> str:
    """Return a text with its signs as a keyboard has them, and LaTeX around numbers resolved.

    No-break and thin spaces become U+202F, so that they are still told from plain ones.
    """
    text = _RAISED.sub(lambda found: "^" + found[0].translate(_RAISED_DIGITS), text)
    text = text.translate(_TYPED)
    for pattern, instead in _LATEX:
        text = pattern.sub(instead, text)
    return text


def numerals(text: str, *, decimal_comma: bool = False) -> list[Numeral]:
    """Return the numbers in a text that ``typed`` returned, in order.

    Args:
        text: Of a model.
        decimal_comma: ``3,14`` is a little over three, and ``1.234`` over a thousand.
    """
    pattern = _WITH_COMMA if decimal_comma else _WITH_POINT
    found: list[Numeral] = []
    for match in pattern.finditer(text):
        before = text[max(0, match.start() - 3) : match.start()]
        if before.rstrip().endswith("±"):
            continue
        value = _value(match, decimal_comma)
        if not value.is_finite():
            value = Decimal("NaN")
        found.append(Numeral(value, match["percent"] is not None, match.start(), match.end()))
    return found


def _value(match: re.Match[str], decimal_comma: bool) -> Decimal:
    if match["odd"] is not None or match.end() - match.start() > LONGEST_NUMERAL:
        return Decimal("NaN")
    body = re.sub(r"[ \u202f'’_]", "", match["body"])
    body = body.replace(".", "").replace(",", ".") if decimal_comma else body.replace(",", "")
    value = Decimal(body)
    if match["power"] is not None:
        # Of ten alone: 2^10 is something to work out, and 9^99999999 more than there is time for.
        if body != "10":
            return Decimal("NaN")
        value = DIGITS.scaleb(Decimal(1), int(match["power"]))
    if match["below"] is not None:
        value = DIGITS.divide(value, Decimal(match["below"]))
    if match["whole"] is not None:
        value = DIGITS.add(Decimal(match["whole"]), value)
    exponent = match["e"] or match["ten"]
    if exponent is not None:
        value = DIGITS.scaleb(value, int(exponent))
    if match["word"] is not None:
        value = DIGITS.scaleb(value, _WORDS[match["word"].lower()])
    negative = (match["sign"] or "").startswith("-") or match["late"] is not None
    return value.copy_negate() if negative else value
