"""Evaluation time of a run: at most, and at the efficiency that is assumed for training.

Two kinds of work. A pass over held-out data or references is limited by operations, as training
is. An answer is written token by token, and each token reads every weight: experts in MXFP4 are
decoded first, all of a layer's for any number of tokens, so their bf16 is written and read as well.
That is limited by the memory's rate. Answers are counted at ``max_new_tokens`` each, because nobody
knows before how long a model will think; prompts themselves are not counted.

Counting answers by operations was the alternative: it is a hundred times too fast for a few rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptoss_tune.plan.architecture import Architecture
from gptoss_tune.plan.data_tokens import held_out_tokens, prompt_tokens, prompts_in_files
from gptoss_tune.plan.flops import Work
from gptoss_tune.plan.gpus import Gpu
from gptoss_tune.plan.rollout.cost import playing_seconds
from gptoss_tune.plan.rollout.phase import phase_of
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.plan.weights import base_bytes, compute_bytes, expert_parameters
from gptoss_tune.recipe.data_schema import DataSection
from gptoss_tune.recipe.evaluation_schema import EvaluationSection
from gptoss_tune.recipe.schema import ModelSection

_LINES = {".jsonl", ".ndjson"}


@dataclass(frozen=True)
class Repeated:
    """Something a run does several times.

    Attributes:
        times: How often; ``None`` where the steps of the run are not known.
        seconds: Of one time; ``None`` where the size of the data is not known.
    """

    times: int | None
    seconds: float | None

    @property
    def hours(self) -> float | None:
        """Hours of all times."""
        if self.times == 0:
            return 0.0
        if self.times is None or self.seconds is None:
            return None
        return self.times * self.seconds / 3600


@dataclass(frozen=True)
class EvaluationTime:
    """What a run evaluates, and how long that takes at most.

    Attributes:
        held_out: Passes over ``data.eval`` or ``data.eval_fraction``.
        asked: Evaluations of the ``evaluation`` section.
        base: The base's answers to compare with, once where the run does not start with them.
        answers: Prompts, probes and requests of one evaluation, at most.
    """

    held_out: Repeated
    asked: Repeated
    base: Repeated
    answers: int

    @property
    def hours(self) -> float | None:
        """Hours of all evaluations; ``None`` where one of them is not known."""
        parts = [part.hours for part in (self.held_out, self.asked, self.base)]
        known = [hours for hours in parts if hours is not None]
        return sum(known) if len(known) == len(parts) else None


def evaluation_time(
    setup: TrainingSetup, evaluation: EvaluationSection, card: Gpu, work: Work
) -> EvaluationTime:
    """Return how long a run evaluates, on all its cards.

    Args:
        setup: What is trained, and how.
        evaluation: What is asked.
        card: The GPU.
        work: Of the training, whose efficiency is assumed here too.
    """
    drift, safety = evaluation.drift, evaluation.safety
    data, processes = setup.data, setup.num_processes
    forward_rate = card.tflops * 1e12 * work.efficiency / work.flops.forward  # tokens/s of a card
    token_seconds = bytes_read(setup.architecture, setup.model) / (
        card.memory_tb_per_s * 1e12 * work.efficiency
    )

    def answering(prompts: int) -> float:
        share = -(-prompts // processes)
        batches = -(-share // evaluation.batch_size)
        return batches * evaluation.max_new_tokens * token_seconds

    efforts = len(evaluation.reasoning_effort or [None])
    questions = _rows(evaluation.prompts, evaluation.max_prompts) * efforts
    probes = _rows(drift.probes, drift.max_probes)
    references = -(-_rows(drift.references, drift.max_references) // processes)
    comparing = 2 * references * data.max_length / forward_rate
    prompts_to_base = drift.reasoning or safety.reads_prompts
    # A hint is planted twice, a right one and a wrong one; at one effort, as thinking is left out.
    again = _rows(evaluation.prompts, evaluation.max_prompts) * (
        2 * safety.hints + safety.without_analysis
    )
    unsafe = again + _rows(safety.requests, safety.max_requests)
    compared = probes + (questions if prompts_to_base else 0) + unsafe
    starts_as_base = evaluation.at_start and setup.lora.init_from is None
    return EvaluationTime(
        held_out=Repeated(
            _held_out_passes(data, setup.train.eval_steps, work.steps),
            _held_out_seconds(setup, card, work),
        ),
        asked=Repeated(
            _evaluations(evaluation, work.steps), answering(questions + probes + unsafe) + comparing
        ),
        base=Repeated(int(compared > 0 and not starts_as_base), answering(compared)),
        answers=questions + probes + unsafe,
    )


def _held_out_seconds(setup: TrainingSetup, card: Gpu, work: Work) -> float | None:
    """Return the seconds of one look at held-out data: forward passes, or an episode a prompt."""
    data, phase = setup.data, phase_of(setup)
    if phase is None:
        tokens = held_out_tokens(data, branches=setup.added.branches)
        rate = card.tflops * 1e12 * work.efficiency / work.flops.forward * setup.num_processes
        passes = 1 + setup.added.forward_passes
        return None if tokens is None else passes * tokens / rate
    rows = prompts_in_files(data.train if data.eval is None else data.eval)
    if rows is None or setup.method.name != "grpo" or setup.method.sampler == "server":
        return None
    if data.eval is None:
        rows = int(rows * (data.eval_fraction or 0))
    share = -(-rows // setup.num_processes)
    read, prompt = bytes_read(setup.architecture, setup.model), prompt_tokens(data, phase.prompt)[0]
    return playing_seconds(setup, card, work, read, episodes=share, prompt_tokens=prompt)


def bytes_read(architecture: Architecture, model: ModelSection) -> int:
    """Return the bytes that one token of an answer moves through a GPU's memory."""
    held = base_bytes(architecture, model)
    # Of the two tables of the vocabulary only the head is read whole.
    total = sum(held.values()) - held["embeddings"] // 2
    if model.experts_precision == "mxfp4":
        values = architecture.layers * expert_parameters(architecture)
        total += 2 * values * compute_bytes(model)  # decoded: written, and read
    return total


def _held_out_passes(data: DataSection, every: int | None, steps: int | None) -> int | None:
    """Return the passes over held-out data: ``every`` so many steps, and once at the end."""
    if data.eval is None and data.eval_fraction is None:
        return 0
    if every is None:
        return 1
    return None if steps is None else -(-steps // every)


def _evaluations(evaluation: EvaluationSection, steps: int | None) -> int | None:
    """Return the evaluations: at the start, on the way, and once at the end."""
    if not evaluation.wanted:
        return 0
    if evaluation.eval_steps is None:
        return evaluation.at_start + 1
    return None if steps is None else evaluation.at_start + -(-steps // evaluation.eval_steps)


def _rows(files: Sequence[str] | None, most: int) -> int:
    """Return the rows of ``files``, at most ``most``, which it is where they cannot be counted."""
    total = 0
    for path in map(Path, files or ()):
        if path.suffix.lower() not in _LINES or not path.is_file():
            return most
        with path.open("rb") as stream:
            for line in stream:
                total += bool(line.strip())
                if total == most:
                    return most
    return total
