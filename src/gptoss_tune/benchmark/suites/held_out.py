"""The run's own held-out rows as a suite: its tool calls, put again and compared as structures.

Each place at which the assistant is to go on becomes a question in the context it is served in:
thoughts of earlier turns dropped, those of the turn in progress kept. Where the row calls a tool
there, the call is graded. A textual answer has no right form that a program could know, so it
counts only where its row says how it is graded (``answer``, ``pattern``, ``grader``), and then as
the row's last answer. What is left out is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from gptoss_tune.benchmark.subjects.subject import Asking
from gptoss_tune.benchmark.suites.suite import Suite
from gptoss_tune.errors import DataError
from gptoss_tune.evaluate.prompts import Question, questions_of
from gptoss_tune.grading.calls import calls_of
from gptoss_tune.grading.grader import Grader
from gptoss_tune.grading.rows import read_grader
from gptoss_tune.harmony.conversation import Conversation, Message, cut_turns
from gptoss_tune.harmony.dataset.kinds import CONVERSATIONS, SampleKind
from gptoss_tune.harmony.dataset.load import (
    effort_of,
    held_out_places,
    sample_settings,
    split_sources,
)
from gptoss_tune.harmony.fields import Effort
from gptoss_tune.harmony.formats.registry import read_row
from gptoss_tune.harmony.render import Renderer
from gptoss_tune.harmony.sources.open import open_source
from gptoss_tune.harmony.sources.padding import clean_row
from gptoss_tune.harmony.vocabulary import Vocabulary
from gptoss_tune.recipe import DataSection

HELD_OUT: Final = "held-out"
MOST_QUESTIONS: Final = 1_000
"""Questions of a run's own rows that are asked; the rest are counted."""


class NothingGraded(DataError):
    """What a recipe has of its own asks nothing whose answer is graded."""


def held_out_suite(
    data: DataSection,
    vocabulary: Vocabulary,
    asking: Asking,
    *,
    seed: int,
    kind: SampleKind = CONVERSATIONS,
    limit: int | None = None,
) -> Suite:
    """Return the tool calls, and the graded answers, of the rows that a recipe holds out.

    Args:
        data: The recipe's data section.
        vocabulary: Of the model.
        asking: How answers are drawn.
        seed: Of the run, which draws the held-out share.
        kind: What the rows are to the run's method.
        limit: Ask this many questions at most.

    Raises:
        NothingGraded: Nothing in the held-out rows is graded.
        DataError: Nothing is held out, or rows cannot be read.
    """
    if kind.rows != "conversation":
        raise NothingGraded(
            f"{HELD_OUT}: the rows are answers to choose between, which nothing but the loss "
            "measures; leave this suite out, or name others"
        )
    most = MOST_QUESTIONS if limit is None else min(limit, MOST_QUESTIONS)
    reader = _Reader(data, Renderer(vocabulary, sample_settings(data).render), asking, most)
    chosen = held_out_places(data, vocabulary, seed=seed, kind=kind)
    for source in split_sources(data, "eval"):
        for at, raw in open_source(source).rows():
            if chosen is None or at in chosen:
                reader.add(at, raw, effort_of(source, data))
    if not reader.questions:
        raise NothingGraded(
            f"{HELD_OUT}: none of the {reader.rows:,} held-out rows calls a tool or says how its "
            "answer is graded; give rows an answer or a grader, or leave this suite out"
        )
    return Suite(
        HELD_OUT,
        "Tool calls and graded answers of the rows that the run holds out.",
        tuple(reader.questions),
        asking,
        notes=tuple(reader.notes()),
    )


class _Reader:
    """Makes questions of rows, and counts what is no question."""

    def __init__(self, data: DataSection, renderer: Renderer, asking: Asking, most: int) -> None:
        self.rows = 0
        self.questions: list[Question] = []
        self._data, self._renderer, self._asking, self._most = data, renderer, asking, most
        self._reading = sample_settings(data).reading
        self._left: Counter[str] = Counter()

    def add(self, at: str, raw: Any, effort: Effort) -> None:
        """Take one row.

        Raises:
            DataError: It cannot be read, and the recipe does not skip such rows.
        """
        self.rows += 1
        try:
            row, _ = clean_row(raw, at)
            conversation = read_row(row, at, self._reading)
            grader = read_grader(row, at)
        except DataError:
            if self._data.on_error == "stop":
                raise
            self._left["rows that cannot be read"] += 1
            return
        if not isinstance(conversation, Conversation):
            self._left["rows of raw text"] += 1
            return
        points = list(self._points(conversation, grader))
        for number, (asked, wanted) in enumerate(points, start=1):
            if len(points) > 1:
                asked = replace(asked, source=f"{at} answer {number}")
            if len(self.questions) >= self._most:
                self._left[f"questions over {self._most:,}"] += 1
            else:
                self._ask(asked, wanted, effort)

    def notes(self) -> Iterator[str]:
        """Yield a line for each kind of thing that was left out."""
        for what, count in sorted(self._left.items()):
            yield f"{HELD_OUT}: left out {count:,} {what}"

    def _ask(self, asked: Conversation, grader: Grader, effort: Effort) -> None:
        try:
            self.questions += questions_of(
                asked,
                grader,
                self._renderer,
                efforts=[effort],
                max_new_tokens=self._asking.max_new_tokens,
            )
        except DataError:
            self._left["questions that do not fit into the context"] += 1

    def _points(
        self, conversation: Conversation, grader: Grader | None
    ) -> Iterator[tuple[Conversation, Grader]]:
        """Yield what is asked at each place where the assistant goes on, and how it is graded."""
        messages = conversation.messages
        first = 0
        if self._data.turns == "last":
            first = cut_turns([message.header for message in messages])[-1].start
        for start, end in _generations(messages):
            said = messages[start:end]
            if start < first or said[-1].weight == 0:
                self._left["answers that are context and not trained"] += 1
            elif said[-1].is_call:
                try:
                    yield _until(conversation, start), calls_of(said)
                except DataError:
                    self._left["calls whose arguments are no JSON object"] += 1
            elif grader is not None and end == len(messages):
                yield _until(conversation, start), grader
            else:
                self._left["textual answers that nothing grades"] += 1


def _generations(messages: list[Message]) -> Iterator[tuple[int, int]]:
    """Yield first and end of each run of messages that the model writes in one go."""
    start: int | None = None
    for index, message in enumerate(messages):
        if not message.is_assistant:
            start = None
            continue
        start = index if start is None else start
        if message.is_call or message.is_final:
            yield start, index + 1
            start = None


def _until(conversation: Conversation, end: int) -> Conversation:
    return replace(conversation, messages=conversation.messages[:end])
