"""Rules that hold or do not: what a text begins with, is written in, or must not have."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Final

from gptoss_tune.files import strict_json
from gptoss_tune.grading.reading.plain import normalized
from gptoss_tune.grading.rules import measures
from gptoss_tune.harmony.fields import shown

SCRIPTS: Final = (
    *("latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "bengali", "tamil", "thai"),
    *("han", "kana", "hangul"),
)
"""Writing systems; ``kana`` is Japanese, whose texts mix it with Han characters."""
_SHARE_OF_SCRIPT: Final = 0.9
_FENCE: Final = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*)\n```", re.DOTALL)
_TITLE: Final = re.compile(r"<<[^<>\n]{0,500}[^<>\s][^<>\n]{0,500}>>")
_UNICODE_NAME: Final = {"han": ("CJK",), "kana": ("HIRAGANA", "KATAKANA", "CJK")}

Settings = Mapping[str, Any]


def _keywords(text: str, settings: Settings) -> str | None:
    missing = [word for word in settings["keywords"] if not measures.occurrences(text, word)]
    return f"{shown(missing[0])} is missing" if missing else None


def _forbidden(text: str, settings: Settings) -> str | None:
    there = [word for word in settings["keywords"] if measures.occurrences(text, word)]
    return f"{shown(there[0])} is there" if there else None


def _lowercase(text: str, _: Settings) -> str | None:
    return _in_case(text, str.lower, "a capital letter")


def _uppercase(text: str, _: Settings) -> str | None:
    return _in_case(text, str.upper, "a small letter")


def _in_case(text: str, change: Callable[[str], str], what: str) -> str | None:
    if not any(char.isalpha() for char in text):
        return "there are no letters"
    other = next((char for char in text if change(char) != char), None)
    return None if other is None else f"{what}, {shown(other)}, is there"


def _no_commas(text: str, _: Settings) -> str | None:
    return "a comma is there" if any(comma in text for comma in ",，、،") else None


def _starts_with(text: str, settings: Settings) -> str | None:
    begin = measures.typed(settings["text"]).strip().casefold()
    starts = measures.typed(text).strip().casefold().startswith(begin)
    return None if starts else f"it begins with {shown(text.strip()[:40])}"


def _ends_with(text: str, settings: Settings) -> str | None:
    end = measures.typed(settings["text"]).strip().casefold()
    ends = measures.typed(text).strip().casefold().endswith(end)
    return None if ends else f"it ends with {shown(text.strip()[-40:])}"


def _quotation(text: str, _: Settings) -> str | None:
    inner = measures.typed(text).strip()
    quoted = len(inner) > 2 and inner[0] == inner[-1] == '"'
    return None if quoted else "it is not wrapped in double quotes"


def _json(text: str, settings: Settings) -> str | None:
    inner = text.strip()
    if settings.get("fenced") and (fence := _FENCE.fullmatch(inner)) is not None:
        inner = fence[1]
    try:
        strict_json.parse(inner.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        return f"it is not JSON alone: {str(error)[:80]}"
    return None


def _title(text: str, _: Settings) -> str | None:
    return None if _TITLE.search(text) else "no title in double angular brackets is there"


def _postscript(text: str, settings: Settings) -> str | None:
    marker = "".join(measures.typed(settings.get("marker", "P.S.")).casefold().split())
    begins = ("".join(line.strip(" *_\t").casefold().split()) for line in text.splitlines())
    there = any(line.startswith(marker) and len(line) > len(marker) for line in begins)
    return None if there else f"no line begins with {shown(settings.get('marker', 'P.S.'))}"


def _two_answers(text: str, _: Settings) -> str | None:
    parts = [part.strip() for part in re.split(r"(?<!\*)\*{6}(?!\*)", text)]
    if len(parts) != 2 or not all(parts):
        return f"{sum(map(bool, parts))} answers separated by ******, 2 wanted"
    return "both answers are the same" if normalized(parts[0]) == normalized(parts[1]) else None


def _repeat_prompt(text: str, settings: Settings) -> str | None:
    prompt = " ".join(measures.typed(settings["prompt"]).split())
    said = " ".join(measures.typed(text).split())
    if not said.startswith(prompt):
        return "it does not begin with the prompt, word for word"
    return None if len(said) > len(prompt) + 1 else "nothing follows the prompt"


def _one_of(text: str, settings: Settings) -> str | None:
    accepted = {normalized(option) for option in settings["options"]}
    return None if normalized(text) in accepted else "it is none of the options"


def _first_word(text: str, settings: Settings) -> str | None:
    parts = measures.paragraphs(text, settings.get("separator", "blank line"))
    wanted = settings.get("paragraphs")
    if wanted is not None and len(parts) != wanted:
        return f"{len(parts)} paragraphs, {wanted} wanted"
    number = settings.get("paragraph", 1)
    begin = measures.words(parts[number - 1])[:1] if number <= len(parts) else []
    if begin and measures.typed(begin[0]).casefold() == measures.typed(settings["word"]).casefold():
        return None
    return f"paragraph {number} begins with {shown(begin[0]) if begin else 'nothing'}"


def _script(text: str, settings: Settings) -> str | None:
    name = settings["script"]
    begins = _UNICODE_NAME.get(name, (name.upper(),))
    letters = [char for char in text if char.isalpha()]
    own = sum(unicodedata.name(char, "").startswith(begins) for char in letters)
    if letters and own >= _SHARE_OF_SCRIPT * len(letters):
        return None
    return f"{own} of {len(letters)} letters are {name}"


def _no_list(text: str, _: Settings) -> str | None:
    listed = re.search(r"^[ \t]*(?:[-*•+]|\d{1,4}[.)])[ \t]+\S", text, re.MULTILINE)
    return "a list is there" if listed else None


STATED: Final[dict[str, tuple[tuple[str, ...], Callable[[str, Settings], str | None]]]] = {
    "keywords": (("keywords",), _keywords),
    "forbidden_words": (("keywords",), _forbidden),
    "lowercase": ((), _lowercase),
    "uppercase": ((), _uppercase),
    "no_commas": ((), _no_commas),
    "no_list": ((), _no_list),
    "starts_with": (("text",), _starts_with),
    "ends_with": (("text",), _ends_with),
    "quotation": ((), _quotation),
    "json": (("fenced?",), _json),
    "title": ((), _title),
    "postscript": (("marker?",), _postscript),
    "two_answers": ((), _two_answers),
    "repeat_prompt": (("prompt",), _repeat_prompt),
    "one_of": (("options",), _one_of),
    "first_word": (("word", "paragraph?", "paragraphs?", "separator?"), _first_word),
    "script": (("script",), _script),
}
"""The settings of each rule (``?``: optional), and what says why it does not hold."""
