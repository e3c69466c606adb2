"""Letters that are written without blanks around a word, and where a word ends beside them.

Chinese, Japanese, Thai, Lao, Khmer and Burmese have no blanks between words, Korean none before its
particles; so ``42個です`` holds a number and ``答えはCです`` a letter, where ``x42``
and ``Cat`` hold none.
"""

from __future__ import annotations

import re
from typing import Final

UNSPACED: Final = (
    "\u0e01-\u0e4e\u0e81-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u1100-\u11ff\u1780-\u17d7"
    "\u3005-\u3007\u3031-\u3035\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
)
"""For the inside of a character class; the digits of these scripts are not among them."""
SPACED: Final = rf"[^\W{UNSPACED}]"
"""A letter, digit or low line that makes a longer word of what stands beside it."""
_UNSPACED_CHAR: Final = re.compile(f"[{UNSPACED}]")


def one_word(left: str, right: str) -> bool:
    """Whether two characters side by side are of one word: ``k`` and ``m``, not ``m`` and で."""
    if not (left.isalnum() and right.isalnum()):
        return False
    return not (_UNSPACED_CHAR.match(left) or _UNSPACED_CHAR.match(right))
