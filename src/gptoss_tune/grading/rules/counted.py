"""Rules about how many: each counts something, and ``at_least``, ``at_most`` or ``exactly`` decide.

``{"rule": "words", "at_most": 50}`` holds for a text of 50 words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from gptoss_tune.grading.rules import measures

_BULLET: Final = re.compile(r"^[ \t]*[-*•+][ \t]+\S", re.MULTILINE)
_NUMBERED: Final = re.compile(r"^[ \t]*\d{1,4}[.)][ \t]+\S", re.MULTILINE)
_HIGHLIGHTED: Final = re.compile(r"\*\*[^*\n]{1,2000}\*\*|(?<!\*)\*(?![\s*])[^*\n]{1,2000}\*(?!\*)")
_PLACEHOLDER: Final = re.compile(r"\[[^\[\]\n]{1,200}\](?!\()")
_HEADING: Final = re.compile(r"^#{1,6}[ \t]+\S", re.MULTILINE)

Settings = Mapping[str, Any]


def _words(text: str, _: Settings) -> int:
    return len(measures.words(text))


def _sentences(text: str, _: Settings) -> int:
    return len(measures.sentences(text))


def _paragraphs(text: str, settings: Settings) -> int:
    return len(measures.paragraphs(text, settings.get("separator", "blank line")))


def _lines(text: str, _: Settings) -> int:
    return len(measures.lines(text))


def _characters(text: str, _: Settings) -> int:
    return len(text.strip())


def _keyword(text: str, settings: Settings) -> int:
    return measures.occurrences(text, settings["keyword"])


def _letter(text: str, settings: Settings) -> int:
    return text.casefold().count(settings["letter"].casefold())


def _capital_words(text: str, _: Settings) -> int:
    return sum(word.isupper() and len(word) > 1 for word in measures.words(text))


def _sections(text: str, settings: Settings) -> int:
    name = re.escape(measures.typed(settings["name"]).casefold())
    found = re.findall(rf"^[\s*_#]*{name}\s{{0,3}}\d{{1,4}}", measures.typed(text).casefold(), re.M)
    return len(found)


def _matches(pattern: re.Pattern[str]) -> Callable[[str, Settings], int]:
    return lambda text, _: len(pattern.findall(text))


COUNTED: Final[dict[str, tuple[str, tuple[str, ...], Callable[[str, Settings], int]]]] = {
    "words": ("words", (), _words),
    "sentences": ("sentences", (), _sentences),
    "paragraphs": ("paragraphs", ("separator?",), _paragraphs),
    "lines": ("lines", (), _lines),
    "characters": ("characters", (), _characters),
    "keyword_frequency": ("of the keyword", ("keyword",), _keyword),
    "letter_frequency": ("of the letter", ("letter",), _letter),
    "capital_words": ("words in capitals", (), _capital_words),
    "bullets": ("bullet points", (), _matches(_BULLET)),
    "numbered_items": ("numbered lines", (), _matches(_NUMBERED)),
    "highlighted": ("highlighted parts", (), _matches(_HIGHLIGHTED)),
    "headings": ("headings", (), _matches(_HEADING)),
    "sections": ("sections", ("name",), _sections),
    "placeholders": ("placeholders in square brackets", (), _matches(_PLACEHOLDER)),
}
"""What is counted, the settings besides the amounts (``?``: optional), and how."""
AMOUNTS: Final = ("at_least", "at_most", "exactly")


def check_counted(name: str, text: str, settings: Settings) -> str | None:
    """Return why a rule about an amount does not hold; ``None``: it does."""
    what, _, count = COUNTED[name]
    number = count(text, settings)
    wanted = {key: settings[key] for key in AMOUNTS if key in settings}
    holds = {
        "at_least": lambda n: number >= n,
        "at_most": lambda n: number <= n,
        "exactly": lambda n: number == n,
    }
    for key, amount in wanted.items():
        if not holds[key](amount):
            return f"{number} {what}, {key.replace('_', ' ')} {amount} wanted"
    return None
