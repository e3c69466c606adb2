"""Units of numbers: whether a text has a unit or another one, and currencies before a number.

``42 km/h`` and ``42 km²`` have no ``km``, and ``€5`` is no ``$5``.
"""

from __future__ import annotations

import re
from typing import Final

from gptoss_tune.grading.reading.scripts import one_word

_GOES_ON: Final = re.compile(r"[)}]{0,2}\s?(?:[/×]\s?\\?[^\W\d_]|\^|\*\*\d)")
"""Behind a unit: per something, times something, or a power."""
_CURRENCIES: Final = {
    "$": "$ us$ usd r$ a$ cad aud dollar dollars dólar dólares peso pesos real reais",
    "€": "€ eur euro euros",
    "£": "£ gbp pound pounds pfund",
    "¥": "¥ jpy cny yen yuan rmb 円 元 日元 人民币",
    "₹": "₹ inr rupee rupees",
    "₩": "₩ krw won 원",
    "₽": "₽ rub rouble roubles ruble rubles рубль рубля рублей руб",
    "¢": "¢ cent cents",
    "chf": "chf franc francs franken",
}
_SPELLINGS: Final = {sign: frozenset(words.split()) for sign, words in _CURRENCIES.items()}
_SIGN_OF: Final = {
    **{sign: sign for sign in _CURRENCIES},
    **{"us$": "$", "usd": "$", "eur": "€", "gbp": "£", "jpy": "¥", "chf": "chf"},
}
_BEFORE: Final = re.compile(r"[+-]?\s?(us\$|[$€£¥₹₩₽¢]|usd|eur|gbp|jpy|chf)", re.IGNORECASE)


def begins_with_unit(text: str, unit: str) -> bool:
    """Return whether a text begins with a unit that nothing behind makes another of."""
    if not text.startswith(unit) or one_word(unit[-1:], text[len(unit) : len(unit) + 1]):
        return False
    return _GOES_ON.match(text, len(unit)) is None


def currency_before(written: str, behind: str) -> frozenset[str]:
    """Return the spellings of the currency that a number begins with; none where it has none.

    Args:
        written: The number with what ``numerals`` counts to it.
        behind: The text behind it; a dollar sign there ends the formula that one before began.
    """
    found = _BEFORE.match(written)
    if found is None or (found[1] == "$" and "$" in behind):
        return frozenset()
    return _SPELLINGS[_SIGN_OF[found[1].casefold()]]
