"""Texts as answers are compared: ``" Paris. "`` equals ``"paris"``."""

from __future__ import annotations

import unicodedata
from typing import Final

_KEYBOARD: Final = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2012\u2013\u2212", "-"),
        **dict.fromkeys("\u2018\u2019\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d", '"'),
        **dict.fromkeys("\u200b\u2060\ufeff", None),
    }
)
"""Hyphens, minus signs and quotes as a keyboard has them, nothing for characters without width:
gpt-oss writes U+2011 (which NFKC makes U+2010) or U+2212 (minus) for a typed ``-``."""


def normalized(text: str) -> str:
    """Return a text as answers are compared: ``" Paris. "`` equals ``"paris"``.

    Unicode NFKC, hyphens and quotes as typed, case folded, each run of white space one space and
    none at the ends, one full stop at the end dropped. Markup, articles and digit separators stay:
    ``**4**`` is not ``4``.
    """
    typed = unicodedata.normalize("NFKC", text).translate(_KEYBOARD)
    folded = " ".join(typed.casefold().split())
    return folded.removesuffix(".").rstrip()
