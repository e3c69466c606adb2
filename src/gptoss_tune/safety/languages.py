"""In which language is a text? By script, and for Latin letters by a few common words.

Enough to see that a chain of thought has left the language of the prompt, or changes within itself.
A language detector with a model of its own was the alternative; it brings a file of megabytes and
says something of every text. Here a text of few words, or of a language without a list, is not
known, and what is not known is no switch.

Limits. Latin script: nine languages by stopwords; quotations of another language longer than half
of a piece count as that language; code, formulas and names count for nothing. gpt-oss thinks in
English about many prompts in other languages: read the change from the base, not the level.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Final

PIECE_WORDS: Final = 40
"""Words of a piece of a text whose language is told."""
_FEWEST_LETTERS: Final = 12
_FEWEST_HITS: Final = 3
_SHARE_OF_SCRIPT: Final = 0.5

_SCRIPTS: Final = {
    "LATIN": "latin",
    "CYRILLIC": "cyrillic",
    "GREEK": "greek",
    "ARABIC": "arabic",
    "HEBREW": "hebrew",
    "DEVANAGARI": "devanagari",
    "BENGALI": "bengali",
    "TAMIL": "tamil",
    "THAI": "thai",
    "HANGUL": "korean",
    "CJK": "chinese",
    "HIRAGANA": "japanese",
    "KATAKANA": "japanese",
}
_WORDS: Final = {
    "english": "the and of to is that it for with this be are we so not from have which what how "
    "you they need should answer there",
    "german": "der die das und ist nicht ein eine zu den mit auf für von wir sich auch es dass wie "
    "ich sind werden aber",
    "french": "le la les et est des une de du dans que pour pas qui sur nous il avec ce cette donc "
    "sont mais ou être quelle quel comment au aux",
    "spanish": "el la los las y es que de en una por para con no se como pero son más está lo esta "
    "cuál hay",
    "italian": "il lo gli e è che di una per non con si come ma sono più questo della nel alla "
    "quindi dei",
    "portuguese": "o os as e é que de uma para não com em se como mas são mais isto da do na então "
    "você",
    "dutch": "de het een en is van dat niet te op voor met zijn wij ook maar dus wat hoe worden "
    "deze naar",
    "swedish": "och är att det en ett som på för med inte av den vi så till om men detta hur har "
    "kan",
    "polish": "i w na nie się że jest to z do jak ale są dla czy tak więc od po który ten oraz",
}
_LISTS: Final = {name: frozenset(words.split()) for name, words in _WORDS.items()}
_CODE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
_WORD: Final = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> str | None:
    """Return a language or a script by name; ``None`` where it cannot be told."""
    text = _CODE.sub(" ", text)
    scripts = Counter(script for c in text if (script := _script(c)) is not None)
    if scripts["japanese"]:  # kana stand beside characters that Chinese has too
        scripts["japanese"] += scripts.pop("chinese", 0)
    if sum(scripts.values()) < _FEWEST_LETTERS:
        # A character of Chinese is a word, and a short question has few.
        few = sum(scripts[name] for name in ("chinese", "japanese", "korean"))
        if few < 4:
            return None
    script, letters = scripts.most_common(1)[0]
    if letters <= _SHARE_OF_SCRIPT * sum(scripts.values()):
        return None
    return _latin_language(text) if script == "latin" else script


def switches(prompt: str, analysis: str) -> bool:
    """Return whether an analysis is in another language than its prompt, or changes its own.

    Args:
        prompt: The last message of the user.
        analysis: The chain of thought.
    """
    known = [language for piece in _pieces(analysis) if (language := language_of(piece))]
    start = language_of(prompt) or (known[0] if known else None)
    return any(language != start for language in known)


def _pieces(text: str) -> list[str]:
    words = _CODE.sub(" ", text).split()
    # Text without spaces is one word, however long.
    if len(words) <= PIECE_WORDS:
        return [text]
    return [" ".join(words[n : n + PIECE_WORDS]) for n in range(0, len(words), PIECE_WORDS)]


def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    if character.isascii():
        return "latin"
    return _SCRIPTS.get(unicodedata.name(character, "").partition(" ")[0])


def _latin_language(text: str) -> str | None:
    words = [word.lower() for word in _WORD.findall(text)]
    hits = Counter({name: sum(word in listed for word in words) for name, listed in _LISTS.items()})
    (first, most), (_, second) = hits.most_common(2)
    # Neighbours share words ("que", "de"), so the lead has to be clear.
    return first if most >= _FEWEST_HITS and most >= 1.5 * second else None
