r"""The grader ``maths``: two mathematical texts that mean the same, LaTeX or plain.

``\frac{1}{2}`` equals ``0.5``, ``(x-1)(x+1)`` equals ``x^2-1``, ``\{3, 1, 2\}`` equals ``1, 2, 3``,
``x \le 2`` equals ``(-\infty, 2]``, ``y = 2x + 1`` equals ``2x - y + 1 = 0``: math-verify decides,
on top of SymPy, in a process that is killed when it takes too long (``bounded/``).

What counts as the answer, the first that is there:

1. what is ``\boxed{}``; several boxes must all be right, or together be the set asked for;
2. what follows ``Answer:`` or ``the answer is``: its first formula, or the sentence's own text;
3. the whole text, where it is one line without prose;
4. what is bold in the last line that has something bold;
5. the formulas (``$...$``, ``\(...\)``) of the last sentence that has one; all must be right.

What the text denies (``not $4$ but``, ``$4$ is wrong``) is left out before. Formulas joined by
``and``, ``or`` or a comma are a set: ``3 or 4`` is {3, 4} and never 3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from gptoss_tune.errors import DataError
from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.bounded.worker import JobDied, OutOfTime, worker
from gptoss_tune.grading.grader import NOT_JUDGED, Verdict
from gptoss_tune.grading.reading.denied import denial
from gptoss_tune.grading.reading.places import (
    announced,
    bold,
    boxed,
    displayed_in_line,
    sentences,
)
from gptoss_tune.grading.reading.scripts import SPACED
from gptoss_tune.grading.reading.settings import (
    LONGEST_ANSWER,
    TOO_LONG,
    refuse_unknown,
    require,
    take_count,
    take_texts,
)
from gptoss_tune.harmony.fields import shown

LONGEST_EXPRESSION: Final = 2_000
"""Characters."""
_MOST_TEXTS: Final = 8
_SECONDS_TO_READ: Final = 5.0
_FORMULA: Final = re.compile(
    r"\$\$(?P<a>[^$]{1,2000})\$\$|(?<![\\$])\$(?P<b>(?:\\\$|[^$\n]){1,2000})\$"
    r"|\\\((?P<c>[^\n]{1,2000}?)\\\)|\\\[(?P<d>[^$]{1,2000}?)\\\]"
)
_DENIED: Final = denial(
    r"(?:\$\$[^$]{1,2000}\$\$|(?<![\\$])\$[^$\n]{1,2000}\$|\\\([^\n]{1,2000}?\\\)"
    r"|\\\[[^$]{1,2000}?\\\]|\\f?boxed\s?\{[^{}]{1,2000}\}"
    rf"|(?<!{SPACED})(?<![.,/^{{(\\])[-+]?\d(?:[\d.,]{{0,60}}\d)?(?![\d^/*+({{\\]))"
)
_MATRIX: Final = re.compile(r"\\begin\{(\w{1,12})\}[^$]{1,2000}?\\end\{\1\}")
_COMMAND: Final = re.compile(r"\\[A-Za-z]+(?:\{[A-Za-z ]*\})?")
_JOINED: Final = re.compile(
    r"\s*(?:,?\s*(?:and|or|maybe|perhaps|und|oder|et|ou|y|o)(?:\s\w{1,8}){0,2}|[,;])\s*"
)
_ASIDE: Final = re.compile(
    r"\s(?:because|since|as|where|when|which|for|so|with|if|by)\s.*", re.DOTALL
)
_UNIT_WORDS: Final = re.compile(
    r"(?<=[\d)}π])\s+(?!(?:and|or|pi|sqrt|in)\b)[A-Za-z]{2,20}\.?(?:\s[A-Za-z]{2,20}){0,3}$"
)
_PROSE: Final = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sqrt|sin|cos|tan|cot|sec|csc|log|exp|arcsin|arccos|arctan|sinh|cosh|tanh|"
    r"min|max|and|inf|infinity|mod|gcd|lcm)(?![A-Za-z]))[A-Za-z]{3,}"
)
_TYPED: Final = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
        **dict.fromkeys("\u00a0\u2007\u2008\u2009\u200a\u202f", " "),
        **dict.fromkeys("\u200b\u2060\ufeff", None),
    }
)


@dataclass(frozen=True)
class Maths:
    """Passes when the answer means the same as one of the ``answers``.

    Attributes:
        answers: Right answers, in LaTeX or plain.
        digits: Decimal places of numbers that count.
    """

    answers: tuple[str, ...]
    digits: int = 6

    kind: ClassVar[str] = "maths"
    seconds: ClassVar[float] = 5.0

    @property
    def expected(self) -> str:
        """What to show beside an answer."""
        return " | ".join(self.answers)

    def judge(self, given: Given, seconds: float) -> Verdict:
        """Compare in the process that can be killed."""
        if given.final is None:
            return Verdict(False)
        if len(given.final) > LONGEST_ANSWER:
            return Verdict(False, TOO_LONG)
        tries = answer_texts(given.final)
        if not tries:
            return Verdict(False, "there is no mathematical answer that is marked as one")
        if max(map(len, tries)) > _MOST_TEXTS:
            return Verdict(False, f"marks more than {_MOST_TEXTS} different answers")
        reply = _asked({"right": self.answers, "tries": tries, "digits": self.digits}, seconds)
        if isinstance(reply, str):
            return Verdict(False, reply)
        unread = reply["unread"]
        note = None if unread is None else f"{shown(unread)} cannot be read as mathematics"
        return Verdict(reply["passed"], note, reply["read"])


def answer_texts(final: str) -> list[list[str]]:
    """Return what an answer may be: alternatives, each a list of texts that must all be right."""
    text = displayed_in_line(final.translate(_TYPED)).strip()
    text = _MATRIX.sub(lambda found: " ".join(found[0].split()), text)
    text = _DENIED.sub(" ", text)
    boxes = [box.strip() for box in boxed(text)]
    if boxes:
        unlike = list(dict.fromkeys(boxes))
        return [unlike] if len(unlike) == 1 else [unlike, [_as_set(unlike)]]
    told = [parts for place in announced(text) if (parts := _parts(place))]
    if told:
        return [list(dict.fromkeys(told))]
    bare = text.strip("*_`").rstrip(".")
    if "\n" not in bare and len(bare) <= 300:
        formula = _FORMULA.fullmatch(bare)
        if formula is not None:
            return [[_inside(formula)]]
        if not _is_prose(_UNIT_WORDS.sub("", bare)) and not _FORMULA.search(bare):
            return [[_UNIT_WORDS.sub("", bare)]]
    for line in reversed(text.splitlines()):
        spans = [parts for place in bold(line) if (parts := _parts(place))]
        if spans:
            return [list(dict.fromkeys(spans))]
    for sentence in reversed(sentences(text)):
        formulas = _runs(sentence)
        if formulas:
            return [list(dict.fromkeys(formulas))]
    return []


def _parts(place: str) -> str | None:
    """Return what a sentence gives as the answer, without what it says about it."""
    place = place.strip().strip("*_` ")
    if _FORMULA.search(place):
        return _runs(place)[0]
    text = _ASIDE.sub("", place).strip().rstrip(".").strip("*_` ")
    text = _UNIT_WORDS.sub("", text)
    if not text or len(text) > LONGEST_EXPRESSION:
        return None
    return None if _is_prose(text) else text


def _is_prose(text: str) -> bool:
    r"""Whether words stand in a text besides those of LaTeX: ``\text{yes}`` has none."""
    return _PROSE.search(_COMMAND.sub("", text)) is not None


def _runs(sentence: str) -> list[str]:
    """Return the formulas of a sentence; those joined by ``and``, ``or`` or a comma are one set."""
    runs: list[list[str]] = []
    end = -1
    for match in _FORMULA.finditer(sentence):
        joined = end >= 0 and _JOINED.fullmatch(sentence, end, match.start())
        if joined:
            runs[-1].append(_inside(match))
        else:
            runs.append([_inside(match)])
        end = match.end()
        if len(runs) > 32:
            return []
    return [run[0] if len(run) == 1 else _as_set(list(dict.fromkeys(run))) for run in runs]


def _inside(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group is not None).strip()


def _as_set(parts: list[str]) -> str:
    """Return formulas as one set; ``x = 1`` and ``x = 2`` are the values 1 and 2."""
    if len(parts) == 1:
        return parts[0]
    inner = ", ".join(re.sub(r"^\s*[A-Za-z](?:_\{?\w\}?)?\s*=(?!=)", "", part) for part in parts)
    return rf"\{{{inner}\}}"


def _asked(task: dict[str, Any], seconds: float) -> dict[str, Any] | str:
    """Return the worker's reply, or why there is none."""
    try:
        reply = worker("maths").ask(task, seconds)
    except OutOfTime:
        return f"{NOT_JUDGED}: the comparison did not end within {seconds:.2g} s"
    except JobDied:
        return f"{NOT_JUDGED}: the comparison took more memory than it may"
    return f"{NOT_JUDGED}: {reply['error']}" if "error" in reply else reply


def read_maths(row: dict[str, Any], settings: Mapping[str, Any], source: str) -> Maths:
    """Return the grader of a mathematical answer, or of a list of accepted ones.

    Raises:
        DataError: It is none that can be read.
        MachineError: math-verify is not installed.
    """
    refuse_unknown(settings, ("digits",), source, Maths.kind)
    require("math_verify", Maths.kind, source)
    digits = take_count(settings.get("digits", 6), source, f"grader {Maths.kind}.digits")
    answer = row.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool) and abs(answer) < 1e300:
        answer = str(answer)
    answers = tuple(_own(text, source) for text in take_texts(answer, source, "answer", most=32))
    return Maths(answers, digits)


def _own(text: str, source: str) -> str:
    """Return the part of a right answer that is compared, once it has been read."""
    alternatives = answer_texts(text) if len(text) <= LONGEST_ANSWER else []
    own = alternatives[-1][0] if alternatives else text.translate(_TYPED).strip()
    why: str | None = None
    if not alternatives and "\\" not in own:
        why = "it is prose"  # which the grammar would take for a product of letters
    else:
        reply = _asked({"right": [], "tries": [[own]], "digits": 6}, _SECONDS_TO_READ)
        if isinstance(reply, str):
            why = reply
        elif reply["read"] is None:
            why = "it is no mathematics that math-verify knows"
    if why is not None:
        raise DataError(
            f"{source}: answer is {shown(text)}, which grader maths cannot read ({why}); write the "
            "answer alone, in LaTeX"
        )
    return own
