r"""The grader ``choice``: which of several options the final text names, by letter or by its text.

Where the letter is looked for, in this order; the first place that holds one decides, and two
different letters there do not pass:

1. what is ``\boxed{}``;
2. what follows ``Answer:``, ``the answer is`` or ``the correct option is``;
3. the beginning: ``B``, ``(B)``, ``B.``, ``B) Paris``, ``**B**``, ``Option B``;
4. what is bold;
5. anywhere: ``(B)``, ``option B``, a capital letter by itself, but neither ``A`` nor ``I``, which
   are words, and none in a sentence that says not, wrong or incorrect;
6. the text of exactly one option, where no letter is named.

What the text denies (``not A but``, ``A is wrong``, lines ``A) ... – wrong``) is left out first.
A letter with the text of another option behind it (``B) London`` where B is Paris) does not pass.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Final

from gptoss_tune.errors import DataError
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.grader import Verdict
from gptoss_tune.grading.reading.denied import denial, is_denied
from gptoss_tune.grading.reading.places import announced, bold, boxed, sentences
from gptoss_tune.grading.reading.plain import normalized
from gptoss_tune.grading.reading.scripts import SPACED
from gptoss_tune.grading.reading.settings import (
    LONGEST_ANSWER,
    TOO_LONG,
    refuse_unknown,
    take_texts,
)
from gptoss_tune.harmony.fields import shown

LETTERS: Final = "ABCDEFGHIJ"
_WORD: Final = r"(?:the\s)?(?:correct\s|right\s|best\s)?(?:option|choice|answer|letter|statement)"
# Each run is bounded: several that take the same signs would be searched in all their divisions.
_OPEN: Final = r"[\s*_`\"'“‘$\[{(]{0,8}(?:\\(?:text|mathrm|mathbf|textbf)\s?\{\s?)?"
_CLOSE: Final = r"[)\]}*_`\"'”’$]{0,8}"
# Behind a letter without a blank: Japanese, Korean, Chinese and Thai; A君 and A型 are words.
_GOES_ON: Final = (
    r"(?:で[すあはし]|だ|が|입니다|이[다에고며]|예요|[가이]\s|[选選]?[项項]|是|因[为為]"
    r"|ครับ|ค่ะ|เพราะ)"
)
_HEAD: Final = re.compile(
    rf"{_OPEN}(?:{_WORD}\s?:?\s?)?[(\[*]{{0,4}}(?P<letter>[A-Ja-j]){_CLOSE}"
    rf"(?P<end>\s*$|\s*[.):：,;\n/&+–—]|\s+-\s|-(?=\s)|\s+(?=[^a-z])|\s+(?:is|because|since|or|and)\b|\s+\(|(?={_GOES_ON}))",
    re.IGNORECASE,
)
_MORE: Final = re.compile(
    rf"[\s*_`)\]]{{0,8}}(?:,|/|&|\+|or\b|and\b|oder\b|und\b|,\s?or\b|,\s?and\b|,\s?und\b){_OPEN}"
    rf"(?:{_WORD}\s?)?[(\[*]{{0,4}}(?P<letter>[A-J])(?!{SPACED}|['’])",
    re.IGNORECASE,
)
_CORRECT: Final = re.compile(
    r"\b(?:correct|right|best)\s(?:option|choice|answer|letter|statement)\b[^.\n]{0,30}?(?:is|:)\s*"
    r"|\b(?:i\s(?:choose|pick|select)|my\schoice\sis|choose|option)\s*:?\s+(?=[*(\[]{0,3}[A-J]\b)",
    re.IGNORECASE,
)
_SURE: Final = re.compile(r"\(([A-J])\)|\[([A-J])\]|\b[Oo]ption\s\**\(?([A-J])\b")
_ALONE: Final = re.compile(rf"(?<!{SPACED})(?<!['’.&-])([B-HJ])(?!{SPACED}|['’&-]|\.\w)")
_DENIED: Final = re.compile(
    r"\b(?:not|isn't|cannot|can't|wrong|incorrect|false|except|eliminate|rule\sout|ruled\sout|neither|"
    r"unlike|rather\sthan|instead\sof|nicht|kein\w{0,2}|falsch|pas|faux)\b",
    re.IGNORECASE,
)
_LABELLED: Final = re.compile(
    r"^[ \t*_#>(-]{0,8}(?P<letter>[A-J])[)\].:*_]{1,4}[ \t]*(?P<text>[^\n]*?)"
    r"(?P<label>(?:(?:[–—:(]|(?<=\s)-)[ \t]*|[❌✗✘][ \t]*|(?<=[\s:*.)]))[*_]{0,2}"
    r"(?:no|not\s(?:correct|right|true|the\sanswer)|wrong|incorrect|false|falsch|faux|incorrecto|"
    r"不正确|[错錯][误誤]|不正解|❌|✗|✘)\W{0,8})?$",
    re.IGNORECASE | re.MULTILINE,
)


_SET_OFF: Final = "–—:(-❌✗✘"


@lru_cache(maxsize=64)
def _denial_of(options: tuple[str, ...]) -> re.Pattern[str]:
    """Return what finds a letter that is denied, alone or with its option's text behind it."""
    own = "".join(
        rf"|{letter}[)\].:*_,–—\s-]{{1,6}}{re.escape(_typed(option))}(?!{SPACED})"
        for letter, option in zip(LETTERS, options, strict=False)
    )
    return denial(
        r"(?:(?:the\s)?(?:option|choice|answer|letter|statement)\s)?[(\[*_]{0,3}"
        rf"(?<!{SPACED})(?<!['.&-])(?-i:(?:[A-J](?!{SPACED}|['’&-]){own}))"
    )


@dataclass(frozen=True)
class Choice:
    """Passes when the final text names the right option and no other.

    Attributes:
        letter: Of the right option, ``A`` to ``J``.
        options: Text of each option in order; empty where only the letters are known.
    """

    letter: str
    options: tuple[str, ...] = ()

    kind: ClassVar[str] = "choice"
    seconds: ClassVar[float] = 0.0

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        if not self.options:
            return self.letter
        return f"{self.letter}) {self.options[LETTERS.index(self.letter)]}"

    def judge(self, given: Given, seconds: float) -> Verdict:
        """Look for the letter, or for the option's text."""
        if given.final is None:
            return Verdict(False)
        if len(given.final) > LONGEST_ANSWER:
            return Verdict(False, TOO_LONG)
        named = self._named(_typed(given.final))
        if len(named) != 1:
            note = f"names {' and '.join(sorted(named))}" if named else "names no option"
            return Verdict(False, note)
        (letter,) = named
        return Verdict(letter == self.letter, label=letter)

    @property
    def _letters(self) -> str:
        return LETTERS[: len(self.options)] if self.options else LETTERS

    def _named(self, text: str) -> set[str]:
        whole = self._option(text)
        if whole is not None:
            return {whole}
        text = self._without_denied(text)
        boxes, told = boxed(text), [*announced(text), *_behind(_CORRECT, text)]
        for places in (boxes, told, [text], bold(text)):
            named = {letter for place in places for letter in self._at_head(place)}
            if named:
                return named
        sure = {
            letter
            for sentence in sentences(text)
            if not _DENIED.search(sentence)
            for pattern in (_SURE, _ALONE)
            for match in pattern.finditer(sentence)
            for letter in match.groups()
            if letter is not None and letter in self._letters
        }
        return sure or self._contained(told or [text])

    def _without_denied(self, text: str) -> str:
        """Return a text without the letters that it denies, and without lines labelled as wrong."""
        lines = list(_LABELLED.finditer(text))
        if len({line["letter"] for line in lines}) > 1:
            for line in reversed(lines):
                text_or_label = line["text"] + (line["label"] or "")
                is_label = line["label"] and (line["label"][0] in _SET_OFF or not line["text"])
                if is_label and self._option(text_or_label) is None:
                    text = text[: line.start()] + text[line.end() :]
        return _denial_of(self.options).sub(" ", text)

    def _at_head(self, place: str) -> set[str]:
        """Return the letters, or the option's text, that a place begins with."""
        whole = self._option(place)
        if whole is not None:
            return {whole}
        head = _HEAD.match(place)
        if head is None or not self._is_letter(head, place):
            return set()
        letters = {head["letter"].upper()}
        end = head.end("letter")
        while (more := _MORE.match(place, end)) is not None and len(letters) < len(LETTERS):
            letters.add(more["letter"].upper())
            end = more.end()
        if len(letters) == 1:
            other = self._option(
                sentences(place[head.end() :] or " ")[0] if place[head.end() :].strip() else ""
            )
            letters |= {other} if other is not None else set()
        return letters

    def _is_letter(self, head: re.Match[str], place: str) -> bool:
        """Whether a head is an option's letter: ``A`` and ``I`` may be words, small ones too."""
        letter, end = head["letter"], head["end"].strip()
        if letter.upper() not in self._letters:
            return False
        closed = place[head.end("letter") : head.end("letter") + 1] in tuple(")]}*.:")
        if letter.islower():
            return closed or not place[head.end("letter") :].strip(" .*_`$)}]")
        spaced = bool(head["end"]) and not end and bool(place[head.end() :].strip())
        return closed or not (spaced and letter in "AI")

    def _option(self, text: str) -> str | None:
        """Return the letter of the option that a text is."""
        plain = normalized(text.strip("*_`$\"' \n"))
        if not plain:
            return None
        same = [n for n, option in enumerate(self.options) if normalized(option) == plain]
        return LETTERS[same[0]] if len(same) == 1 else None

    def _contained(self, places: Iterable[str]) -> set[str]:
        """Return the options whose text stands in a place, and in no longer option there."""
        found: dict[str, list[bool]] = {}
        for place in places:
            text = normalized(place.replace("*", ""))
            spans: list[tuple[int, int, str]] = []
            for letter, option in zip(LETTERS, self.options, strict=False):
                for match in re.finditer(rf"(?<!\w){re.escape(normalized(option))}(?!\w)", text):
                    spans.append((match.start(), match.end(), letter))
                    if len(spans) > 1_000:
                        return set()
            for begin, end, letter in spans:
                wider = (b <= begin and end <= e and e - b > end - begin for b, e, _ in spans)
                if not any(wider):
                    found.setdefault(letter, []).append(is_denied(text, begin, end))
        # One alone that is denied each time is none; of two texts it is not guessed which is meant.
        denials = [denied for each in found.values() for denied in each]
        return set() if len(found) == 1 and all(denials) else set(found)


def _typed(text: str) -> str:
    return (
        unicodedata.normalize("NFKC", text)
        .replace("\u2011", "-")
        .replace("\u2010", "-")
        .replace("’", "'")
    )


def _behind(pattern: re.Pattern[str], text: str) -> list[str]:
    return [text[match.end() : match.end() + 300] for match in pattern.finditer(text)][:64]


def read_choice(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> Choice:
    """Return the grader of a choice: ``answer`` is a letter, or the text of one of ``choices``.

    Raises:
        DataError: The answer is neither, or the options cannot be told apart.
    """
    refuse_unknown(settings, ("choices",), source, Choice.kind)
    listed = settings.get("choices", row.get("choices"))
    options: tuple[str, ...] = ()
    if listed is not None:
        options = take_texts(listed, source, "choices", most=len(LETTERS))
        if not isinstance(listed, list) or len(options) < 2:
            raise DataError(f"{source}: choices has one entry; expected 2 to {len(LETTERS)}")
        if len({normalized(option) for option in options}) < len(options):
            raise DataError(f"{source}: two of the choices are the same; they must differ")
    answer = row.get("answer")
    text = answer.strip() if isinstance(answer, str) else ""
    same = [n for n, option in enumerate(options) if normalized(option) == normalized(text)]
    letters = LETTERS[: len(options)] if options else LETTERS
    if same:
        return Choice(LETTERS[same[0]], options)
    letter = text.strip("().").upper()
    if len(letter) == 1 and letter in letters:
        return Choice(letter, options)
    others = ", or the text of one of the choices" if options else ""
    raise DataError(
        f"{source}: answer is {shown(answer)}; grader choice expects a letter from A to "
        f"{letters[-1]}{others}"
    )
