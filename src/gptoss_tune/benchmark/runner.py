"""The runner: every question of every suite to every subject, what is known already from the cache.

One subject after the other, so that one model's weights are held at a time (a base and its run
share theirs). Each answer is kept as soon as it is there; whatever ends the process, the same
command asks the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gptoss_tune.benchmark.cache import AnswerCache, answer_key
from gptoss_tune.benchmark.subjects.subject import Asking, Reply, Subject, UnreadableServer
from gptoss_tune.benchmark.suites.suite import Suite
from gptoss_tune.benchmark.verdicts import all_graded, told_of_code
from gptoss_tune.evaluate.format_checks import problems
from gptoss_tune.evaluate.prompts import Question

Progress = Callable[[str, str, int, int], None]
"""Told the subject, the suite, the answers that are there and those there will be."""

_Replies = dict[tuple[int, int], tuple[Reply, bool]]
"""By number of question and of sample, the answer and whether it was known already."""


@dataclass(frozen=True)
class Graded:
    """One answer with its verdict.

    Attributes:
        question: Number of the question in its suite.
        sample: Number of the answer to it, from 0.
        reply: What was answered.
        grade: ``kind``, ``passed``, ``expected``, and ``note`` and ``label`` where there are.
        problems: What is not healthy harmony about it, a line each.
        kept: It was known already.
    """

    question: int
    sample: int
    reply: Reply
    grade: dict[str, Any]
    problems: tuple[str, ...]
    kept: bool

    @property
    def passed(self) -> bool:
        """Whether it is right."""
        return bool(self.grade["passed"])


@dataclass
class Measured:
    """What all subjects answered.

    Attributes:
        suites: What was asked, in order.
        subjects: Names, the first is what the others are compared with.
        protocols: How each was asked.
        identities: What each is; none for a server that could not be read.
        answers: By suite and subject, in the order of questions and samples.
        refused: Why a subject has no answers.
        notes: What was found about subjects, a line each.
    """

    suites: list[Suite]
    subjects: list[str]
    protocols: dict[str, str] = field(default_factory=dict)
    identities: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: dict[tuple[str, str], list[Graded]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def measure(
    suites: Sequence[Suite],
    subjects: Sequence[Subject],
    cache: AnswerCache,
    progress: Progress = lambda subject, suite, done, total: None,
    *,
    max_analysis_tokens: int | None = None,
) -> Measured:
    """Ask and grade everything.

    Args:
        suites: What is asked; every question has a grader.
        subjects: Who is asked; names differ.
        cache: Gets each answer when it is there.
        progress: Called after each answer.
        max_analysis_tokens: A longer chain of thought is not healthy; ``None``: only a loop is not.

    Raises:
        MachineError: A subject cannot be asked, or did not answer; what was answered is kept.
        DataError: A question cannot be put to a chat API.
    """
    measured = Measured(list(suites), [subject.name for subject in subjects])
    measured.notes += told_of_code(q.grader for suite in suites for q in suite.questions)
    for subject in _next_to_each_other(subjects):
        measured.protocols[subject.name] = subject.protocol
        try:
            for suite in suites:
                replies = _ask(subject, suite, cache, progress)
                found = _graded(suite, replies, max_analysis_tokens)
                measured.answers[suite.name, subject.name] = found
            measured.identities[subject.name] = subject.identity
        except UnreadableServer as error:
            measured.refused[subject.name] = str(error)
            for suite in suites:
                measured.answers.pop((suite.name, subject.name), None)
        finally:
            subject.close()
        measured.notes += getattr(subject, "notes", ())
    return measured


def _next_to_each_other(subjects: Sequence[Subject]) -> list[Subject]:
    """Return the subjects with those of the same weights one after the other."""
    of = [id(getattr(subject, "weights", subject)) for subject in subjects]
    return [subjects[n] for n in sorted(range(len(of)), key=lambda n: of.index(of[n]))]


def _ask(subject: Subject, suite: Suite, cache: AnswerCache, progress: Progress) -> _Replies:
    """Return the answers of one suite."""
    total = len(suite.questions) * suite.samples
    replies: _Replies = {}
    for sample in range(suite.samples):
        asking = replace(suite.asking, seed=suite.asking.seed + sample)
        keys = [answer_key(subject.identity, q, asking) for q in suite.questions]
        for number, key in enumerate(keys):
            if (known := cache.get(key)) is not None:
                replies[number, sample] = known, True
        missing = [n for n in range(len(keys)) if (n, sample) not in replies]
        progress(subject.name, suite.name, len(replies), total)
        for number, reply in _asked(subject, suite.questions, missing, asking):
            cache.put(keys[number], reply)
            replies[number, sample] = reply, False
            progress(subject.name, suite.name, len(replies), total)
    return replies


def _asked(
    subject: Subject, questions: Sequence[Question], missing: Sequence[int], asking: Asking
) -> Any:
    """Yield the answers to the questions of these numbers."""
    if missing:
        for index, reply in subject.ask([questions[n] for n in missing], asking):
            yield missing[index], reply


def _graded(suite: Suite, replies: _Replies, max_analysis_tokens: int | None) -> list[Graded]:
    graders = [question.grader for question in suite.questions if question.grader is not None]
    assert len(graders) == len(suite.questions), f"{suite.name}: a row without a grader"
    given = sorted(replies.items())

    def found(number: int, reply: Reply) -> tuple[str, ...]:
        return tuple(problems(reply.answer, suite.questions[number], max_analysis_tokens))

    grades = all_graded([(graders[number], reply.given) for (number, _), (reply, _) in given])
    return [
        Graded(number, sample, reply, grade, found(number, reply), kept)
        for ((number, sample), (reply, kept)), grade in zip(given, grades, strict=True)
    ]
