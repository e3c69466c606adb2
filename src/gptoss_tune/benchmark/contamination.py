"""Whether the questions of a suite stand in what a run was trained on: n-gram overlap.

Texts are compared as tokens: words in lower case without punctuation (Unicode NFKC, accents kept),
and single characters of scripts that write no spaces (Chinese, Japanese, Thai, Lao, Khmer,
Burmese). A question is cut into all its n-grams; its share is that of the n-grams that stand in one
single training row, whichever row has most. From a share on that grows as questions get shorter it
counts as found, and it is ``answered`` where the row has the right answer too.

========================  ======  ==========  ====================================================
length of the question    n-gram  found from  so that
========================  ======  ==========  ====================================================
40 words or more          13      0.5         a part of it, or some changed words, are found
20 to 39 words            8       0.7         a changed number in its middle is another question
6 to 19 words             5       0.9         ``the capital of Latvia`` is not that of Norway
under 6 words             all     1           only as a whole text: ``2 + 2?`` is in many a longer
========================  ======  ==========  ====================================================

Characters of scripts without spaces count two to a word: 26, 16 and 10 to an n-gram.

All strings of a row are looked at, each by itself, whatever the row's format: prompts, answers,
thoughts, system prompts, results of tools, and what stands in JSON that is held as text. Rows are
read once, one at a time; what is held are the questions' n-grams, as hashes of 64 bits. Reworded
questions (synonyms, translations) are not found: that takes a model, and another one's opinion.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from gptoss_tune.benchmark.suites.suite import Suite
from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.prompts import Question
from gptoss_tune.grading.choice import Choice
from gptoss_tune.grading.maths import Maths
from gptoss_tune.grading.number import Number
from gptoss_tune.grading.text import Exact
from gptoss_tune.harmony.dataset.kinds import CONVERSATIONS, SampleKind
from gptoss_tune.harmony.dataset.load import held_out_places
from gptoss_tune.harmony.sources.open import open_source
from gptoss_tune.harmony.sources.padding import clean_row
from gptoss_tune.harmony.vocabulary import Vocabulary
from gptoss_tune.recipe import DataSection

MOST_ROWS: Final = 5
"""Training rows that are named for a question; the others are counted."""

_WHOLE_UNDER: Final = 6
_SIZES: Final = ((40, 13, 0.5), (20, 8, 0.7), (_WHOLE_UNDER, 5, 0.9))
"""Least words of a text, words of its n-grams, and the share from which it is found."""
_ALONE: Final = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
_TOKEN: Final = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")
_IS_ALONE: Final = re.compile(rf"[{_ALONE}]")
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_MASK: Final = (1 << 64) - 1
_DEEPEST: Final = 64
_BETWEEN: Final = "\n"
"""Stands between two texts of a row; no token is it."""


@dataclass(frozen=True)
class Overlap:
    """A question that training rows hold.

    Attributes:
        source: Of the question.
        share: Of its n-grams in the row that has most of them, 0 to 1.
        rows: ``file:line`` of training rows that hold it, the first ``MOST_ROWS``.
        row_count: How many rows hold it.
        answered: Whether one of them has the right answer too, which is not in the question.
    """

    source: str
    share: float
    rows: tuple[str, ...]
    row_count: int
    answered: bool


@dataclass(frozen=True)
class Contamination:
    """What of a suite stands in the training rows.

    Attributes:
        questions: Looked for; the same row at several efforts counts once.
        rows: Training rows that were read.
        unread: Training rows that could not be.
        found: The questions that were found, the largest share first.
    """

    questions: int
    rows: int
    unread: int
    found: tuple[Overlap, ...]

    @property
    def share(self) -> float:
        """Share of the questions that were found, 0 to 1."""
        return len(self.found) / self.questions if self.questions else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return it as the benchmark's JSON holds it."""
        return {
            "share": self.share,
            "questions": self.questions,
            "rows": self.rows,
            "unread": self.unread,
            "found": [dict(vars(overlap)) for overlap in self.found],
        }


def contamination(
    suites: Sequence[Suite],
    data: DataSection,
    vocabulary: Vocabulary,
    *,
    seed: int,
    kind: SampleKind = CONVERSATIONS,
) -> dict[str, Contamination]:
    """Return by suite what of its questions stands in the training rows, in one pass over them.

    Rows that ``eval_fraction`` holds out are not trained on and not looked at.

    Args:
        suites: Whose questions are looked for.
        data: The section of the run that was trained.
        vocabulary: Of its model, by which the held-out rows are known.
        seed: Of the run.
        kind: What the rows are to the run's method.

    Raises:
        DataError: A training file cannot be read.
        HubError: A dataset on the Hub cannot be had.
    """
    index = _Index(suites)
    held_out = held_out_places(data, vocabulary, seed=seed, kind=kind) or frozenset()
    rows = unread = 0
    for source in data.train:
        for at, raw in open_source(source).rows():
            if at in held_out:
                continue
            try:
                row, _ = clean_row(raw, at)
            except DataError:
                unread += 1
                continue
            rows += 1
            index.look_at(at, row)
    return index.found(rows, unread)


def tokens_of(text: str) -> list[str]:
    """Return a text as it is compared: words, and characters of scripts without spaces."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def ngram_size(tokens: Sequence[str]) -> tuple[int | None, float]:
    """Return how many tokens an n-gram of a text has, and the share from which it is found.

    ``None``: it is looked for as a whole.
    """
    alone = sum(1 for token in tokens if _IS_ALONE.fullmatch(token))
    per_word = 2 if alone * 2 > len(tokens) else 1
    for least, size, share in _SIZES:
        if len(tokens) >= least * per_word:
            return size * per_word, share
    return None, 1.0


@dataclass
class _Wanted:
    """A question that is looked for, and what was found of it."""

    suite: str
    source: str
    ngrams: int
    found_from: float
    answers: tuple[tuple[str, ...], ...]
    best: float = 0.0
    rows: list[str] = field(default_factory=list)
    row_count: int = 0
    answered: bool = False


class _Index:
    """The n-grams of all questions, and which questions each belongs to."""

    def __init__(self, suites: Sequence[Suite]) -> None:
        self._suites = [suite.name for suite in suites]
        self._wanted: list[_Wanted] = []
        self._of: dict[int, dict[int, list[int]]] = {}
        """By n-gram size (0: whole texts), the questions that have a hash."""
        for suite in suites:
            seen: set[tuple[str, str]] = set()
            for question in suite.questions:
                asked = (question.source, _asked(question))
                if asked not in seen:
                    seen.add(asked)
                    self._add(suite.name, question)
        self._sizes = sorted(size for size in self._of if size)
        self._whole = 0 in self._of
        self._sorted = {
            size: np.fromiter(sorted(known), np.uint64, len(known))
            for size, known in self._of.items()
        }

    def _add(self, suite: str, question: Question) -> None:
        tokens = tokens_of(_asked(question))
        size, share = ngram_size(tokens)
        if size is None:
            unique = {_whole(tokens)} if tokens else set[int]()
        else:
            unique = set(dict(_rolled(_hashed(tokens), [size]))[size].tolist())
        number = len(self._wanted)
        # An answer that the question offers itself tells nothing.
        answers = tuple(one for one in _answers(question) if not _holds([tokens], one))
        about = (len(unique), share, answers)
        self._wanted.append(_Wanted(suite, question.source, *about))
        known = self._of.setdefault(size or 0, {})
        for value in unique:
            known.setdefault(value, []).append(number)

    def look_at(self, at: str, row: dict[str, Any]) -> None:
        """Note which questions a training row holds."""
        texts = [tokens for text in _strings(row) if (tokens := tokens_of(text))]
        # In one array, with a token between that no text has: an n-gram never joins two texts.
        joined = [token for tokens in texts for token in (*tokens, _BETWEEN)]
        runs = dict(_rolled(_hashed(joined), self._sizes))
        # A short question is looked for among short texts, as the whole of one.
        short = (
            [tokens for tokens in texts if len(tokens) < 2 * _WHOLE_UNDER] if self._whole else []
        )
        runs[0] = np.array([_whole(tokens) for tokens in short], np.uint64)
        hits: dict[int, set[int]] = {}
        for size, found in runs.items():
            if size in self._sorted:
                for value in found[_isin(found, self._sorted[size])].tolist():
                    for number in self._of[size][value]:
                        hits.setdefault(number, set()).add(value)
        for number, values in hits.items():
            self._note(self._wanted[number], len(values), at, texts)

    def _note(self, wanted: _Wanted, count: int, at: str, texts: list[list[str]]) -> None:
        share = count / wanted.ngrams
        if share < wanted.found_from:
            return
        wanted.best = max(wanted.best, share)
        wanted.row_count += 1
        if len(wanted.rows) < MOST_ROWS:
            wanted.rows.append(at)
        if not wanted.answered:
            wanted.answered = any(_holds(texts, answer) for answer in wanted.answers)

    def found(self, rows: int, unread: int) -> dict[str, Contamination]:
        """Return what was found, by suite."""
        result = {}
        for name in self._suites:
            own = [wanted for wanted in self._wanted if wanted.suite == name]
            overlaps = [
                Overlap(w.source, w.best, tuple(w.rows), w.row_count, w.answered)
                for w in own
                if w.row_count
            ]
            overlaps.sort(key=lambda overlap: -overlap.share)
            result[name] = Contamination(len(own), rows, unread, tuple(overlaps))
        return result


def _asked(question: Question) -> str:
    """Return what a question asks: the last message of the user."""
    asked = [m["content"] for m in question.messages if m["role"] == "user"]
    return asked[-1] if asked else question.messages[-1]["content"]


def _answers(question: Question) -> tuple[tuple[str, ...], ...]:
    """Return the right answers as tokens, as far as the grader has them as texts."""
    grader = question.grader
    if grader is None:
        return ()
    several = isinstance(grader, Exact | Number | Maths | Choice)
    texts = grader.answers if several else (grader.expected,)
    found = (tuple(tokens_of(text)) for text in texts)
    return tuple(tokens for tokens in found if tokens)


def _holds(texts: list[list[str]], answer: tuple[str, ...]) -> bool:
    """Return whether an answer stands in a text as a run of its tokens."""
    wanted = f" {' '.join(answer)} "
    return any(wanted in f" {' '.join(tokens)} " for tokens in texts)


def _strings(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield every text in a row; JSON that is held as text is looked into."""
    if isinstance(value, str):
        inner = _of_json(value) if depth < _DEEPEST else None
        if inner is None:
            yield value
        else:
            yield from _strings(inner, depth + 1)
    elif isinstance(value, dict | list) and depth < _DEEPEST:
        for below in value.values() if isinstance(value, dict) else value:
            yield from _strings(below, depth + 1)


def _of_json(text: str) -> Any:
    """Return the object or list that a text spells; ``None``: it is a text."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _hash(token: str) -> int:
    # Salted by the process, which is enough: hashes never leave it.
    return hash(token) & _MASK


def _hashed(tokens: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(_hash, tokens), np.uint64, len(tokens))


def _whole(tokens: Sequence[str]) -> int:
    """Return the hash of a whole text."""
    return _hash(" ".join(tokens))


def _rolled(hashed: np.ndarray, sizes: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield for each size, in rising order, the hash of each run of so many tokens.

    The run of n tokens comes of that of n - 1, so all sizes cost no more than the largest.
    """
    runs = np.zeros(len(hashed), np.uint64)
    with np.errstate(over="ignore"):
        for size in range(1, max(sizes, default=0) + 1):
            if size > len(hashed):
                return
            runs = runs[: len(hashed) - size + 1] * _MULTIPLIER + hashed[size - 1 :]
            if size in sizes:
                yield size, runs


def _isin(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return which values stand in a sorted array."""
    places = np.searchsorted(known, values)
    places[places == len(known)] = 0
    return known[places] == values if len(known) else np.zeros(len(values), bool)
