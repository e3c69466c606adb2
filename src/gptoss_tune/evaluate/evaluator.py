"""One evaluation: everything a recipe's ``evaluation`` section asks for, put to a model.

All files are read when the evaluator is made, before any weights are. What it finds is one JSON
object (``evaluation/step-N.json``) and a few figures for the metrics; both are the same for a model
in training and for a finished one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import nn

from gptoss_tune.distributed import Ranks
from gptoss_tune.evaluate.drift import (
    divergence_from_base,
    read_references,
    reasoning_tokens,
    refusal_rate,
)
from gptoss_tune.evaluate.format_checks import problems
from gptoss_tune.evaluate.generate import (
    Generation,
    answer,
    evaluating,
    is_adapted,
    without_adapters,
)
from gptoss_tune.evaluate.parse import Answer, read_answer
from gptoss_tune.evaluate.prompts import Question, read_questions
from gptoss_tune.grading.grader import Grading, Verdict
from gptoss_tune.grading.policy_metrics import (
    policies_report,
    policy_figures,
    refuse_equal_names,
)
from gptoss_tune.harmony.dataset.load import sample_settings
from gptoss_tune.harmony.render import Renderer
from gptoss_tune.harmony.vocabulary import Vocabulary
from gptoss_tune.recipe import DataSection, EvaluationSection


@dataclass(frozen=True)
class Answers:
    """Answers of one evaluation, in the order of questions and probes.

    Attributes:
        questions: Of the model.
        probes: Of the model.
        base_questions: Of its base; ``None`` where the base was not asked.
        base_probes: Of its base.
    """

    questions: list[Answer]
    probes: list[Answer]
    base_questions: list[Answer] | None
    base_probes: list[Answer] | None


class Evaluator:
    """The questions, probes and references of one recipe, and the base's answers to them.

    Attributes:
        questions: What is answered and graded.
        probes: What is answered to count refusals.
        generation: How answers are drawn.
        answers: Of the last evaluation; ``None`` before it.
        references: Where the distributions are compared.
    """

    def __init__(
        self, section: EvaluationSection, data: DataSection, vocabulary: Vocabulary, *, seed: int
    ) -> None:
        """Read every file of the section.

        Args:
            section: What is asked, and how.
            data: How rows are read and become tokens, as in training.
            vocabulary: Of the model.
            seed: Of answers that are drawn.

        Raises:
            DataError: A file or row cannot be used; all such rows of a file set are listed.
        """
        drift, usual = section.drift, data.reasoning_effort
        settings = sample_settings(data)
        renderer = Renderer(vocabulary, settings.render)
        self._section, self._encoding = section, vocabulary.encoding
        self.generation = Generation(
            section.max_new_tokens, section.temperature, section.batch_size, seed
        )

        def questions(files: Sequence[str] | None, limit: int, efforts: Any) -> list[Question]:
            if files is None:
                return []
            longest = section.max_new_tokens
            return read_questions(
                files,
                renderer,
                limit=limit,
                efforts=efforts,
                max_new_tokens=longest,
                reading=settings.reading,
            )

        asked = section.reasoning_effort or [usual]
        self.questions = questions(section.prompts, section.max_prompts, asked)
        refuse_equal_names(question.grader for question in self.questions)
        self.probes = questions(drift.probes, drift.max_probes, [usual])
        self.references = (
            []
            if drift.references is None
            else read_references(
                drift.references,
                renderer,
                limit=drift.max_references,
                max_length=data.max_length,
                reading=settings.reading,
            )
        )
        self._base_answers: list[Answer] | None = None
        self.answers: Answers | None = None

    def run(
        self,
        model: nn.Module,
        *,
        step: int,
        device: torch.device,
        is_base: bool = False,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Return what was found; every rank has to call this, and gets the same.

        Args:
            model: A ``GptOssForTuning``, adapted or not, whose forward is that of training.
            step: Optimizer steps behind it.
            device: Where it is.
            is_base: Its adapters do not act yet, so the base's answers are its own.
            should_stop: Asked before each token and each reference.

        Raises:
            Stopped: ``should_stop`` was true on some rank; nothing was changed.
        """
        ranks = Ranks()
        with evaluating(model):
            tuned = self._answers(model, [*self.questions, *self.probes], should_stop)
            if is_adapted(model) and self._base_answers is None and self._compared:
                if is_base:
                    base = tuned[len(self.questions) - len(self._compared_questions) :]
                else:
                    with without_adapters(model):
                        base = self._answers(model, self._compared, should_stop)
                self._base_answers = base
            drift = None
            if is_adapted(model):
                drift = self._drift(model, tuned, ranks, device, should_stop)
        self.answers = self._sides(tuned)
        return self._report(step, tuned, drift)

    def answer_as_base(self, base: nn.Module) -> None:
        """Keep the answers of a model that is the base of one evaluated later, such as a merged."""
        with evaluating(base):
            self._base_answers = self._answers(base, self._compared, lambda: False)

    def _answers(
        self, model: nn.Module, questions: Sequence[Question], should_stop: Callable[[], bool]
    ) -> list[Answer]:
        prompts = [question.prompt_ids for question in questions]
        generated = answer(model, prompts, self.generation, Ranks(), should_stop)
        return [read_answer(ids, self._encoding) for ids in generated]

    def _sides(self, tuned: Sequence[Answer]) -> Answers:
        asked, compared = len(self.questions), len(self._compared_questions)
        base = self._base_answers
        return Answers(
            questions=list(tuned[:asked]),
            probes=list(tuned[asked:]),
            base_questions=None if base is None or not compared else base[:compared],
            base_probes=None if base is None else base[compared:],
        )

    @property
    def _compared_questions(self) -> list[Question]:
        section = self._section
        wanted = section.drift.reasoning or section.safety.reads_prompts
        return self.questions if wanted else []

    @property
    def _compared(self) -> list[Question]:
        """Return what the base is asked too."""
        return [*self._compared_questions, *self.probes]

    def _drift(
        self,
        model: nn.Module,
        tuned: Sequence[Answer],
        ranks: Ranks,
        device: torch.device,
        should_stop: Callable[[], bool],
    ) -> dict[str, Any] | None:
        found: dict[str, Any] = {}
        if self.references:
            found |= divergence_from_base(model, self.references, ranks, device, should_stop)
        asked = len(self.questions)
        base = self._base_answers or []
        if self.probes:
            of_base, of_tuned = refusal_rate(base[-len(self.probes) :]), refusal_rate(tuned[asked:])
            found["refusal_rate"] = {"base": of_base["refused"], "tuned": of_tuned["refused"]}
            found["unanswered_rate"] = {
                "base": of_base["unanswered"],
                "tuned": of_tuned["unanswered"],
            }
            found["probes"] = len(self.probes)
        if self._section.drift.reasoning:
            before = reasoning_tokens(self.questions, base[:asked])
            after = reasoning_tokens(self.questions, tuned[:asked])
            found["reasoning_tokens_by_effort"] = {
                effort: {"base": before[effort], "tuned": after[effort]} for effort in after
            }
        return found or None

    def _report(
        self, step: int, tuned: Sequence[Answer], drift: dict[str, Any] | None
    ) -> dict[str, Any]:
        judge = Grading()
        samples = [
            self._sample(question, given, judge)
            for question, given in zip(self.questions, tuned[: len(self.questions)], strict=True)
        ]
        grades = [sample["grade"] for sample in samples if sample["grade"] is not None]
        policies = policies_report(
            (question.grader, Verdict(grade["passed"], label=grade.get("label")))
            for question, sample in zip(self.questions, samples, strict=True)
            if (grade := sample["grade"]) is not None
        )
        return {
            "step": step,
            "samples": samples,
            "graded": {"passed": sum(g["passed"] for g in grades), "total": len(grades)},
            **({} if policies is None else {"policies": policies}),
            "health": {
                "valid": sum(not sample["health"] for sample in samples),
                "total": len(samples),
            },
            "drift": drift,
        }

    def _sample(self, question: Question, given: Answer, judge: Grading) -> dict[str, Any]:
        grader = question.grader
        return {
            "prompt": list(question.messages),
            "effort": question.effort,
            "source": question.source,
            "messages": given.as_dicts(),
            "ended": given.ended,
            "tokens": len(given.token_ids),
            "analysis_tokens": given.analysis_tokens,
            "grade": None if grader is None else judge.grade(grader, given.given()),
            "health": problems(given, question, self._section.max_analysis_tokens),
        }


def figures(report: dict[str, Any]) -> dict[str, float]:
    """Return the figures of an evaluation for the metrics, by names that begin with ``eval_``."""
    found: dict[str, float] = {}
    for name, part, key in (("graded", "graded", "passed"), ("health", "health", "valid")):
        if report[part]["total"]:
            found[f"eval_{name}"] = report[part][key] / report[part]["total"]
    samples = report["samples"]
    if samples:
        found["eval_answer_tokens"] = fmean(sample["tokens"] for sample in samples)
        for effort in dict.fromkeys(sample["effort"] for sample in samples):
            lengths = [s["analysis_tokens"] for s in samples if s["effort"] == effort]
            found[f"eval_reasoning_tokens_{effort}"] = fmean(lengths)
    found |= policy_figures(report.get("policies"))
    drift = report["drift"] or {}
    if drift.get("kl") is not None:
        found["eval_kl"] = drift["kl"]
    for channel, kl in drift.get("kl_by_channel", {}).items():
        if kl is not None:
            found[f"eval_kl_{channel}"] = kl
    if "refusal_rate" in drift:
        found["eval_refusal_rate"] = drift["refusal_rate"]["tuned"]
        found["eval_refusal_rate_change"] = (
            drift["refusal_rate"]["tuned"] - drift["refusal_rate"]["base"]
        )
    return found
