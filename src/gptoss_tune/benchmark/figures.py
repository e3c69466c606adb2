"""What was measured as one JSON object: the table's figures, and every answer beside them.

Its shape is what the table, the report, the model card and ``--require`` read::

    {"reference": "base", "created": ..., "version": ...,
     "subjects": [{"name", "protocol", "identity", "refused"}],
     "suites": [{"name", "description", "questions", "samples", "asking", "notes", "licence",
                 "contamination": null | {"share": 0.02, ...},
                 "subjects": {NAME: null | {"score", "interval", "answers", "right", "pass_at",
                     "tokens", "thinking", "cut_off", "health", "not_judged",
                     "policies": null | {"by_policy": {...}, "macro": {...}},
                     "difference": null | {"value", "interval", "p", "within_noise"}}}}],
     "notes": [...], "required": [...], "answers": [...]}
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from gptoss_tune import __version__
from gptoss_tune.benchmark.runner import Graded, Measured
from gptoss_tune.benchmark.statistics import difference, pass_at, share
from gptoss_tune.benchmark.suites.suite import Suite
from gptoss_tune.grading.grader import NOT_JUDGED, Grader, Verdict
from gptoss_tune.grading.policy_metrics import policies_report

_DIGITS = 6


def figures_of(
    measured: Measured, contamination: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return all figures and answers, as JSON.

    Args:
        measured: From ``measure``.
        contamination: By suite, what of it stands in the rows that a run was trained on.
    """
    seen = contamination or {}
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": __version__,
        "reference": measured.subjects[0],
        "subjects": [
            {
                "name": name,
                "protocol": measured.protocols.get(name),
                "identity": measured.identities.get(name),
                "refused": measured.refused.get(name),
            }
            for name in measured.subjects
        ],
        "suites": [
            _suite(suite, measured) | {"contamination": seen.get(suite.name)}
            for suite in measured.suites
        ],
        "notes": list(measured.notes),
        "required": [],
        "answers": [
            _answer(suite, name, graded)
            for suite in measured.suites
            for name in measured.subjects
            for graded in measured.answers.get((suite.name, name), ())
        ],
    }


def _suite(suite: Suite, measured: Measured) -> dict[str, Any]:
    asking = suite.asking
    first = measured.answers.get((suite.name, measured.subjects[0]))
    return {
        "name": suite.name,
        "description": suite.description,
        "licence": suite.licence,
        "notes": list(suite.notes),
        "questions": len(suite.questions),
        "samples": suite.samples,
        "efforts": sorted({question.effort for question in suite.questions}),
        "asking": {
            "max_new_tokens": asking.max_new_tokens,
            "temperature": asking.temperature,
            "top_p": asking.top_p,
            "seed": asking.seed,
        },
        "subjects": {
            name: _subject(
                suite,
                measured.answers.get((suite.name, name)),
                None if name == measured.subjects[0] else first,
            )
            for name in measured.subjects
        },
    }


def _subject(
    suite: Suite, answers: Sequence[Graded] | None, first: Sequence[Graded] | None
) -> dict[str, Any] | None:
    """Return one cell of the table; ``None`` where a subject was not measured."""
    if not answers:
        return None
    score = share(_clusters(suite, answers))
    replies = [one.reply for one in answers]
    by_question = _by(answers, lambda one: one.question)
    against = None
    if first:
        found = difference(_clusters(suite, answers), _clusters(suite, first))
        against = {
            "value": _round(found.value),
            "interval": [_round(found.low), _round(found.high)],
            "p": _round(found.p),
            "within_noise": found.within_noise,
        }
    return {
        "score": _round(score.value),
        "interval": [_round(score.low), _round(score.high)],
        "right": sum(one.passed for one in answers),
        "answers": len(answers),
        "pass_at": {str(k): _round(pass_at(k, by_question)) for k in suite.passes},
        "difference": against,
        "tokens": _mean([reply.tokens for reply in replies]),
        "thinking": _mean([reply.analysis_tokens for reply in replies]),
        "cut_off": _round(fmean(reply.ended == "length" for reply in replies)),
        "health": _round(fmean(not one.problems for one in answers)),
        "not_judged": sum(NOT_JUDGED in str(one.grade.get("note")) for one in answers),
        "policies": policies_report(_judged(suite, answers)),
    }


def _judged(suite: Suite, answers: Sequence[Graded]) -> Iterator[tuple[Grader | None, Verdict]]:
    for one in answers:
        grade = one.grade
        verdict = Verdict(one.passed, grade.get("note"), grade.get("label"))
        yield suite.questions[one.question].grader, verdict


def _clusters(suite: Suite, answers: Sequence[Graded]) -> list[list[bool]]:
    """Return the verdicts of each row, at all its efforts and samples."""
    return _by(answers, lambda one: suite.questions[one.question].source)


def _by(answers: Sequence[Graded], key: Any) -> list[list[bool]]:
    found: dict[Any, list[bool]] = {}
    for one in answers:
        found.setdefault(key(one), []).append(one.passed)
    return list(found.values())


def _answer(suite: Suite, subject: str, graded: Graded) -> dict[str, Any]:
    question, reply = suite.questions[graded.question], graded.reply
    return {
        "suite": suite.name,
        "subject": subject,
        "source": question.source,
        "effort": question.effort,
        "sample": graded.sample,
        "prompt": list(question.messages),
        "messages": list(reply.messages),
        "ended": reply.ended,
        "tokens": reply.tokens,
        "analysis_tokens": reply.analysis_tokens,
        "grade": graded.grade,
        "health": list(graded.problems),
        "kept": graded.kept,
    }


def _mean(values: Sequence[int | None]) -> float | None:
    """Return the mean; ``None`` where a server did not count all."""
    known = [value for value in values if value is not None]
    return _round(fmean(known)) if known and len(known) == len(values) else None


def _round(value: float) -> float:
    return round(float(value), _DIGITS)
