"""An evaluation with its safety part: base and tuned model asked and judged, in one report.

It stands in the place of ``evaluate.Evaluator`` and gives its report, with ``safety`` besides where
the recipe wants it. Answers come from the model in training, on all ranks; a judge is asked by the
first rank alone, while the others stay in step with it, so that none is taken for dead. A judge is
tried before a weight is read. One that fails later costs its judgements and not the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gptoss_tune.distributed import Ranks, gather_over_ranks
from gptoss_tune.errors import GptossTuneError
from gptoss_tune.evaluate.evaluator import Evaluator
from gptoss_tune.evaluate.generate import (
    Stopped,
    answer,
    evaluating,
    is_adapted,
    without_adapters,
)
from gptoss_tune.evaluate.parse import Answer, read_answer
from gptoss_tune.evaluate.prompts import Question
from gptoss_tune.harmony.vocabulary import Vocabulary
from gptoss_tune.recipe import DataSection, EvaluationSection
from gptoss_tune.safety.assess import Assessment, exchange, measured
from gptoss_tune.safety.judge import Judge, Judgement
from gptoss_tune.safety.judging import Exchange, Judging
from gptoss_tune.safety.limits import not_asked
from gptoss_tune.safety.policy import LONGEST_JUDGED, load_policy
from gptoss_tune.safety.questions import Asked, Side, listed_files, read_asked

_LOOK_S = 0.1
_PLACES = ("first", "second")


class SafetyEvaluator:
    """Asks what ``evaluation`` names, and what ``evaluation.safety`` names beside it."""

    def __init__(
        self, section: EvaluationSection, data: DataSection, vocabulary: Vocabulary, *, seed: int
    ) -> None:
        """Read every file of the section and try its judges; every rank has to call this.

        Args:
            section: What is asked, and how.
            data: How rows are read and become tokens, as in training.
            vocabulary: Of the model.
            seed: Of answers that are drawn.

        Raises:
            DataError: A file or row cannot be used; all such rows of a file set are listed.
            MachineError: A judge cannot be asked, or its key is not there.
        """
        self._evaluator = Evaluator(section, data, vocabulary, seed=seed)
        self._section, self._encoding = section, vocabulary.encoding
        self._effort = data.reasoning_effort
        self._generation = self._evaluator.generation
        self._asked: Asked | None = None
        self._base: list[Answer] | None = None
        self._policy = load_policy(section.safety.policy) if section.safety.requests else None
        self._judges: list[Judging] = []
        if section.safety.wanted:
            evaluator = self._evaluator
            self._asked = read_asked(section, data, vocabulary, evaluator.questions,
                                     evaluator.probes)  # fmt: skip
            self._judges = self._tried_judges()

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

        Args, Raises: As of ``Evaluator.run``. ``safety`` is in the report where it is wanted and a
            base is there to compare with.
        """
        report = self._evaluator.run(
            model, step=step, device=device, is_base=is_base, should_stop=should_stop
        )
        if self._asked is None:
            return report
        with evaluating(model):
            tuned = self._own_answers(model, should_stop)
            if self._base is None and is_adapted(model):
                if is_base:
                    self._base = tuned
                else:
                    with without_adapters(model):
                        self._base = self._own_answers(model, should_stop)
        if self._base is None:
            return report
        sides = [self._side(self._base, base=True), self._side(tuned, base=False)]
        return {**report, "safety": self._assessed(self._asked, sides, device, should_stop)}

    @property
    def questions(self) -> list[Question]:
        """What is answered and graded: each prompt at each of its efforts."""
        return self._evaluator.questions

    @property
    def compared(self) -> frozenset[str]:
        """Names of the figures of ``evaluation.safety`` that have a question."""
        if self._asked is None:
            return frozenset()
        return measured(self._asked, thinking=self._section.safety.chain_of_thought)

    def answer_as_base(self, base: nn.Module) -> None:
        """Keep the answers of a model as those of the base, for a merged model that has none."""
        self._evaluator.answer_as_base(base)
        if self._asked is not None:
            with evaluating(base):
                self._base = self._own_answers(base, lambda: False)

    def _own_answers(self, model: nn.Module, should_stop: Callable[[], bool]) -> list[Answer]:
        """Return the answers to requests, hinted and bare prompts, in this order."""
        assert self._asked is not None
        prompts, bare = self._asked.own_prompts, len(self._asked.bare)
        generated = answer(model, prompts, self._generation, Ranks(), should_stop)
        opened = [[]] * (len(prompts) - bare) + [list(self._asked.opening)] * bare
        return [
            read_answer([*opening, *ids], self._encoding)
            for opening, ids in zip(opened, generated, strict=True)
        ]

    def _side(self, own: Sequence[Answer], *, base: bool) -> Side:
        asked, found = self._asked, self._evaluator.answers
        assert asked is not None and found is not None
        questions = found.base_questions if base else found.questions
        probes = found.base_probes if base else found.probes
        requests = len(asked.requests)
        hinted = requests + len(asked.hinted)
        return Side(
            questions=[(questions or [])[n] for n in asked.prompts],
            probes=list(probes or []),
            requests=list(own[:requests]),
            hinted=list(own[requests:hinted]),
            bare=list(own[hinted:]),
        )

    def _assessed(
        self,
        asked: Asked,
        sides: Sequence[Side],
        device: torch.device,
        should_stop: Callable[[], bool],
    ) -> dict[str, Any]:
        section = self._section
        exchanges = [
            exchange(question, given)
            for side in sides
            for question, given in zip(asked.requests, side.requests, strict=True)
        ]
        judged = self._judged(exchanges, device, should_stop)
        half = len(asked.requests)
        assessment = Assessment(
            asked,
            sides[0],
            sides[1],
            [(one[:half], one[half:]) for one in judged],
            max_analysis_tokens=section.max_analysis_tokens,
            thinking=section.safety.chain_of_thought,
        )
        return {
            **assessment.report(),
            "policy": None if self._policy is None else vars(self._policy),
            "judges": [
                {"model": judge.model, "url": judge.url} for judge in self._judge_sections()
            ],
            "asked": self._files(asked),
            "answered": {
                "temperature": section.temperature,
                "max_new_tokens": section.max_new_tokens,
                "reasoning_effort": self._effort,
            },
            "not_asked": not_asked(section, asked, self._effort),
            "problems": told_problems(judged, self._judge_sections()),
        }

    def _files(self, asked: Asked) -> list[dict[str, Any]]:
        section, safety = self._section, self._section.safety
        found = []
        for what, paths, rows, limit in (
            ("requests that ought to be refused", safety.requests, asked.requests,
             safety.max_requests),
            ("prompts", section.prompts if safety.reads_prompts else None, asked.questions,
             section.max_prompts),
            ("harmless probes", section.drift.probes, asked.probes, section.drift.max_probes),
        ):  # fmt: skip
            if paths is not None:
                found.append(listed_files(what, paths, len(rows), limit))
        for what, again in (
            ("prompts with a planted hint", asked.hinted),
            ("prompts answered without analysis", asked.bare),
        ):
            if again:
                found.append({"what": what, "files": [], "rows": len(again)})
        return found

    def _judge_sections(self) -> list[Any]:
        safety = self._section.safety
        return [one for one in (safety.judge, safety.second_judge) if one.url is not None]

    def _tried_judges(self) -> list[Judging]:
        """Return the judges on the first rank, each tried; on the others, those that are not asked.

        Raises:
            MachineError: On all ranks, where one cannot be asked.
        """
        judges: list[Judging] = []
        error: GptossTuneError | None = None
        if self._policy is not None and Ranks().rank == 0:
            try:
                for section in self._judge_sections():
                    judge = Judge(section, self._policy)
                    judge.trial()
                    judges.append(Judging(judge))
            except GptossTuneError as found:
                error = found
        error = gather_over_ranks(error)[0]
        if error is not None:
            raise error
        return judges

    def _judged(
        self,
        exchanges: Sequence[Exchange | None],
        device: torch.device,
        should_stop: Callable[[], bool],
    ) -> list[list[Judgement | None]]:
        """Return each judge's judgements; all ranks wait for the first one and get the same.

        Raises:
            Stopped: On all ranks, when ``should_stop`` was true on one.
        """
        ranks = Ranks()
        for judging in self._judges:
            judging.start([one for one in exchanges if one is not None])
        while True:
            waiting = any(not judging.finished for judging in self._judges)
            still, stopped = ranks.any(waiting, should_stop(), device=device)
            if stopped:
                for judging in self._judges:
                    judging.stop()
                raise Stopped
            if not still:
                break
            time.sleep(_LOOK_S)
        found = [
            [None if one is None else judging.judgement(one) for one in exchanges]
            for judging in self._judges
        ]
        for judging in self._judges:
            judging.forget_failures()
        return gather_over_ranks(found)[0]


def told_problems(judged: Sequence[Sequence[Judgement | None]], judges: Sequence[Any]) -> list[str]:
    """Return what a reader has to know before the figures, one line each.

    Args:
        judged: Each judge's judgements; ``None`` where an answer says nothing.
        judges: Their sections of the recipe.
    """
    found = []
    names = [
        f"the {place} judge ({one.model})" for place, one in zip(_PLACES, judges, strict=False)
    ]
    for judgements, name in zip(judged, names, strict=False):
        asked = [one for one in judgements if one is not None]
        for outcome, words in (
            ("not judged", "were not judged"),
            ("abstained", "got no label that can be read"),
        ):
            some = [one for one in asked if one.outcome == outcome]
            if some:
                found.append(
                    f"{len(some)} of {len(asked)} answers {words} by {name}; the first: "
                    f"{' '.join(some[0].said.split())[:200] or 'an empty answer'}"
                )
        if cut := sum(one.cut and one.label is not None for one in asked):
            found.append(
                f"{cut} of {len(asked)} answers were too long for {name}, which saw the first "
                f"{LONGEST_JUDGED:,} characters: a label 0 on them counts as not judged"
            )
    return found
