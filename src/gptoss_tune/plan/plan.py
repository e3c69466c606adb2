"""The plan of a run: peak memory, disk, FLOPs and hours, from its recipe alone; no torch.

A run that stops after ten minutes of download for want of memory has cost more than a plan, which
takes a moment and no GPU. The parts: ``architecture`` knows the sizes of the base,
``training_setup`` what is trained on it and how, ``methods`` what each method adds, ``weights``
what is always held, ``memory`` the rest of the peak, ``experts`` their layer at work and the tile
of tokens that goes through it, ``disk`` the files, ``flops`` the operations,
``data_tokens`` how much data there is, ``reference_pass``, ``evaluation_time`` and ``rollout`` what
comes beside the training, and ``advice`` what to change. Bytes are counted from shapes and checked
against loaded models and autograd; hours rest on an assumed efficiency, which a plan always names.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gptoss_tune.errors import RecipeError
from gptoss_tune.plan.advice import Advice, Elsewhere, advice, together, ways_out
from gptoss_tune.plan.architecture import Architecture, architecture_of
from gptoss_tune.plan.data_tokens import prompt_tokens
from gptoss_tune.plan.disk import Disk, disk, run_files
from gptoss_tune.plan.evaluation_time import EvaluationTime, bytes_read, evaluation_time
from gptoss_tune.plan.experts.at_work import decoding_traffic, tiles
from gptoss_tune.plan.flops import DEFAULT_EFFICIENCY, Work, work
from gptoss_tune.plan.gpus import Gpu, smallest_with
from gptoss_tune.plan.memory import (
    Memory,
    fitted,
    host_bytes,
    memory,
    playing_memory,
    step_memory,
)
from gptoss_tune.plan.parallel.context import SharedRows, shared_rows
from gptoss_tune.plan.reference_pass import ReferencePass, choosing_pass, reference_pass
from gptoss_tune.plan.rollout.cost import Rollouts, rollouts_of
from gptoss_tune.plan.rollout.phase import phase_of
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.plan.weights import Factors, adapter_parameters, parameters
from gptoss_tune.recipe.recipe import Recipe, chosen_count, fsdp2_obstacle, uneven_experts
from gptoss_tune.recipe.schema import Parallelism


@dataclass(frozen=True)
class Plan:
    """Everything a plan says.

    Attributes:
        recipe: As planned, ``distributed.num_processes`` included.
        architecture: Sizes of the base.
        card: The GPU planned for.
        strategy: How several GPUs share the model.
        setup: What is planned, as the recipe leaves it.
        tile_tokens: Tokens that go through the experts at a time; ``None``: all of a micro-batch.
        decoding_bytes: What decoding experts reads and writes in an optimizer step, on one GPU.
        memory: Peak of one GPU by kind.
        host_bytes: Host memory of one process for what was moved there.
        disk: Bytes on disk.
        work: Operations, tokens, hours of training.
        evaluation: Hours of evaluation.
        reference: The reference pass; ``None`` where the method measures against nothing.
        choosing: The pass that chooses experts; ``None`` where all get an adapter.
        advice: What to change, when it does not fit: each on top of those before it.
        elsewhere: What else is enough, when all the advice is not, or cuts rows.
        shared: What sharing each row costs a GPU; ``None`` where each has rows of its own.
        larger: The smallest known card that fits, when this one does not.
        rollouts: What the episodes cost; ``None`` for a method that plays none.
    """

    recipe: Recipe
    architecture: Architecture
    card: Gpu
    strategy: Parallelism
    setup: TrainingSetup
    tile_tokens: int | None
    decoding_bytes: int
    memory: Memory
    host_bytes: int
    disk: Disk
    work: Work
    evaluation: EvaluationTime
    reference: ReferencePass | None
    choosing: ReferencePass | None
    advice: list[Advice]
    elsewhere: list[Elsewhere]
    larger: Gpu | None
    shared: SharedRows | None = None
    rollouts: Rollouts | None = None

    @property
    def fits(self) -> bool:
        """Whether the peak lies within the card's memory."""
        return self.memory.peak <= self.card.memory_bytes

    @property
    def overrides_that_fit(self) -> tuple[str, ...] | None:
        """The advice in one, empty where none is needed; ``None`` where it is not enough."""
        enough = self.fits or (self.advice and self.advice[-1].fits)
        return together(self.advice) if enough else None

    @property
    def hours(self) -> float | None:
        """Hours of all kinds; ``None`` where one is not known. Loading and saving come on top."""
        known = [hours for hours in self.hours_by_kind.values() if hours is not None]
        return sum(known) if len(known) == len(self.hours_by_kind) else None

    @property
    def hours_by_kind(self) -> dict[str, float | None]:
        """Hours of training, evaluation and, where there are any, of the passes before."""
        passes = {
            "reference": self.reference,
            "choosing experts": self.choosing,
            "rollouts": self.rollouts,
        }
        return {
            "training": self.work.hours,
            "evaluation": self.evaluation.hours,
            **{name: one.hours for name, one in passes.items() if one is not None},
        }

    def peak_on(self, card: Gpu) -> int:
        """Return the peak on another card, in the tiles that it asks for."""
        return memory(fitted(self.setup, card.memory_bytes)).peak

    @property
    def factors(self) -> list[Factors]:
        """Every adapted weight."""
        return self.setup.factors

    @property
    def trained(self) -> int:
        """Parameters trained."""
        return adapter_parameters(self.factors)

    @property
    def experts_adapted(self) -> int:
        """Experts of a layer that get an adapter."""
        if not self.recipe.lora.target_parameters:
            return 0
        experts = self.architecture.experts
        return chosen_count(self.recipe.lora, experts) or experts

    def as_json(self) -> dict[str, Any]:
        """Return the plan for a machine: bytes, counts and seconds, no rounded text."""
        lora = self.recipe.lora
        return {
            "fits": self.fits,
            "gpu": {**asdict(self.card), "count": self.recipe.distributed.num_processes},
            "strategy": self.strategy,
            "parameters": {
                "base": parameters(self.architecture),
                "trained": self.trained,
                "trained_by_target": trained_by_target(self.factors),
                "trained_per_layer": self.trained // len({f.layer for f in self.factors}),
                "trained_per_expert_rank": experts_per_rank(self.factors),
                "expert_rank": lora.expert_rank or lora.rank,
                "experts_adapted": self.experts_adapted,
            },
            "memory_bytes": {**self.memory.kinds, "peak": self.memory.peak},
            "expert_tile": self.tile_tokens,
            "decoding_bytes": self.decoding_bytes,
            "host_bytes": self.host_bytes,
            "disk_bytes": asdict(self.disk),
            "flops_per_token": self.work.flops.as_json(),
            "tokens": self.work.tokens,
            "tokens_from": self.work.tokens_from,
            "steps": self.work.steps,
            "tokens_per_second": self.work.tokens_per_second,
            "efficiency_assumed": self.work.efficiency,
            "hours": self.hours,
            "hours_by_kind": self.hours_by_kind,
            **({} if self.reference is None else {"reference": asdict(self.reference)}),
            **({} if self.rollouts is None else {"rollouts": self.rollouts.as_json()}),
            **({} if self.shared is None else {"shared_rows": asdict(self.shared)}),
            **({} if self.choosing is None else {"choosing_experts": asdict(self.choosing)}),
            "advice": [asdict(entry) for entry in self.advice],
            "overrides_that_fit": self.overrides_that_fit,
            "elsewhere": [asdict(entry) for entry in self.elsewhere],
            "smallest_gpu_that_fits": None if self.larger is None else self.larger.name,
        }


def plan(
    recipe: Recipe,
    card: Gpu,
    *,
    gpus: int | None = None,
    strategy: Parallelism | None = None,
    efficiency: float = DEFAULT_EFFICIENCY,
    epoch_tokens: int | None = None,
) -> Plan:
    """Return what ``recipe`` needs on ``gpus`` cards.

    Args:
        recipe: What is trained.
        card: The GPU.
        gpus: How many; ``None``: ``distributed.num_processes``.
        strategy: With several: ``ddp`` (each holds the model) or ``fsdp2`` (each holds a share);
            ``None``: ``distributed.strategy``, else ``ddp``.
        efficiency: Share of the data sheet's rate that is assumed, above 0 and at most 1.
        epoch_tokens: Tokens of the training data, where known.

    Raises:
        RecipeError: The base is unknown here, a layer does not exist, or an argument is impossible.
        CheckpointError: The base's ``config.json`` is not one of gpt-oss.
    """
    processes = recipe.distributed.num_processes if gpus is None else gpus
    if not 0 < efficiency <= 1 or not 1 <= processes <= 65536:
        raise RecipeError(
            f"got an efficiency of {efficiency:g} and {processes} GPUs; expected above 0 and at "
            "most 1, and 1 to 65536"
        )
    if strategy == "fsdp2" and processes == 1:
        raise RecipeError("--strategy fsdp2 shares a model between GPUs; give --gpus 2 or more")
    if strategy == "fsdp2" and recipe.method.name == "grpo":
        raise RecipeError(
            "--strategy fsdp2: method grpo plays with a whole model on each GPU; give ddp"
        )
    if strategy is None:
        strategy = (recipe.distributed.strategy if processes > 1 else None) or "ddp"
    each = _gpus_a_row(recipe.distributed.context_parallel, processes)
    several = {
        "distributed.num_processes": processes,
        "distributed.strategy": strategy if processes > 1 else None,
        "distributed.context_parallel": each,
    }
    recipe = recipe.with_settings(several)
    architecture = architecture_of(recipe.model.name_or_path)
    setup = TrainingSetup(
        architecture,
        recipe.model,
        recipe.lora,
        recipe.method,
        recipe.data,
        recipe.train,
        processes,
        strategy,
        each,
    )
    _check(setup)
    tiled = fitted(setup, card.memory_bytes)
    needed = memory(tiled)
    training = work(setup, card.tflops, efficiency=efficiency, epoch_tokens=epoch_tokens)
    fits = needed.peak <= card.memory_bytes
    changes = advice(setup, card.memory_bytes)
    return Plan(
        recipe=recipe,
        architecture=architecture,
        card=card,
        strategy=strategy,
        setup=setup,
        tile_tokens=tiled.tile_tokens if tiles(tiled) > 1 else None,
        decoding_bytes=decoding_traffic(tiled),
        memory=needed,
        host_bytes=host_bytes(setup),
        disk=disk(architecture, run_files(architecture, recipe.lora, recipe.train)),
        work=training,
        evaluation=evaluation_time(setup, recipe.evaluation, card, training),
        reference=reference_pass(tiled, training, card.tflops, epoch_tokens),
        choosing=choosing_pass(tiled, training, card.tflops, epoch_tokens),
        advice=changes,
        elsewhere=[] if fits else ways_out(setup, card, changes),
        shared=shared_rows(setup),
        larger=None if fits else smallest_with(needed.peak),
        rollouts=_rollouts(tiled, card, training),
    )


def _rollouts(setup: TrainingSetup, card: Gpu, training: Work) -> Rollouts | None:
    """Return what the episodes cost, where some are played."""
    if (phase := phase_of(setup)) is None:
        return None
    step = step_memory(setup)
    playing = playing_memory(setup, step)
    read = bytes_read(setup.architecture, setup.model)
    peaks = (None if playing is None else playing.peak, step.peak)
    prompt = prompt_tokens(setup.data, phase.prompt)
    return rollouts_of(setup, card, training, read, prompt, peaks)


def _gpus_a_row(asked: int, processes: int) -> int:
    """Return how many of the GPUs share a row, where they make whole groups; one shares nothing."""
    if processes > 1 and processes % asked:
        raise RecipeError(
            f"distributed.context_parallel: {asked} GPUs share each row, and {processes} GPUs do "
            f"not make whole groups of that size; give --gpus {-(-processes // asked) * asked}, or "
            "set another distributed.context_parallel"
        )
    return asked if processes > 1 else 1


def _check(setup: TrainingSetup) -> None:
    """Refuse what a run would refuse later."""
    architecture, model = setup.architecture, setup.model
    if setup.strategy == "fsdp2":
        uneven = uneven_experts(architecture.experts, setup.num_processes)
        reason = fsdp2_obstacle(model, setup.train) or uneven
        if reason is not None:
            raise RecipeError(f"--strategy fsdp2: {reason}")
    unknown = [n for n in setup.lora.layers or () if n >= architecture.layers]
    if unknown:
        raise RecipeError(
            f"lora.layers: got {unknown}, but the base has {architecture.layers} layers, 0 to "
            f"{architecture.layers - 1}; name layers within that range"
        )
    if model.experts_precision == "mxfp4" and not architecture.packed:
        raise RecipeError(
            f"model.experts_precision is mxfp4, but {model.name_or_path} does not store its "
            "experts so; set model.experts_precision: bf16, or start from a release in MXFP4"
        )


def trained_by_target(factors: list[Factors]) -> dict[str, int]:
    """Return the trained parameters of each adapted weight, over all layers."""
    totals: dict[str, int] = {}
    for factor in factors:
        totals[factor.target] = totals.get(factor.target, 0) + factor.parameters
    return totals


def experts_per_rank(factors: list[Factors]) -> int:
    """Return what one more rank on the experts adds, in parameters over all layers."""
    return sum(factor.parameters // factor.rank for factor in factors if factor.on_experts)
