"""The ``Recipe``: the model of all sections, and the rules between them.

Sections are described in ``schema/``, ``data_schema.py`` and ``evaluation_schema.py`` and know
nothing of each other; here they become one frozen model whose settings do not contradict each
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import model_validator

from gptoss_tune.errors import RecipeError
from gptoss_tune.recipe.contradictions.best import best_rules
from gptoss_tune.recipe.contradictions.contradiction import Contradiction, contradiction_error
from gptoss_tune.recipe.contradictions.distributed import distributed_rules
from gptoss_tune.recipe.contradictions.reinforcement import reinforcement_rules
from gptoss_tune.recipe.contradictions.rewards import reward_rules
from gptoss_tune.recipe.contradictions.safety import safety_rules
from gptoss_tune.recipe.contradictions.schedule import schedule_rules
from gptoss_tune.recipe.contradictions.served_sampler import served_sampler_rules
from gptoss_tune.recipe.contradictions.task_columns import task_column_rules
from gptoss_tune.recipe.data_schema import TASK_KEYS, ChannelWeights, DataSection
from gptoss_tune.recipe.evaluation_schema import (
    DriftSection,
    EvaluationSection,
    JudgeSection,
    SafetySection,
)
from gptoss_tune.recipe.mistakes import KeyPath
from gptoss_tune.recipe.rules import (
    data_rules,
    evaluation_rules,
    lora_rules,
    method_rules,
    model_rules,
    tracking_rules,
    train_rules,
)
from gptoss_tune.recipe.schema import (
    METHODS,
    DistributedSection,
    ExportSection,
    GuardSection,
    LoraSection,
    MethodSection,
    ModelSection,
    SftSection,
    TrackingSection,
    TrainSection,
    method_name,
)
from gptoss_tune.recipe.schema.value_types import Section


class Recipe(Section):
    """A whole recipe; what it does not say has the default."""

    model: ModelSection
    """The base model: its weights, the precision they are held in, and what computes them."""
    lora: LoraSection = LoraSection()
    """The adapters: their ranks, and the weights that get one."""
    method: MethodSection = SftSection()
    """How the rows become a loss: the method of training and its settings."""
    data: DataSection
    """The rows: where they are read, what is rendered of them, and what counts in the loss."""
    train: TrainSection
    """The training: folder of the run, length, batch, learning rate, checkpoints."""
    evaluation: EvaluationSection = EvaluationSection()
    """Questions put to the model while it trains, and how its answers are graded."""
    guard: GuardSection = GuardSection()
    """What stops a run by itself, and what it warns of."""
    export: ExportSection = ExportSection()
    """What an export of the run has to keep of its change."""
    tracking: TrackingSection = TrackingSection()
    """Trackers that get the metrics too."""
    distributed: DistributedSection = DistributedSection()
    """Processes: their number, how they share the model, how long one may be silent."""

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        found = self.contradictions()
        if found:
            raise contradiction_error(found)
        return self

    def contradictions(self) -> list[Contradiction]:
        """Return every contradiction between the settings, each of which is sound in itself."""
        return [
            *model_rules(self.model),
            *lora_rules(self.lora, self.model),
            *chosen_rules(self.lora),
            *method_rules(self.method, self.lora, self.data),
            *reinforcement_rules(self.method, self.lora, self.data, self.train, self.distributed),
            *reward_rules(self.method),
            *served_sampler_rules(self.method, self.lora, self.model),
            *data_rules(self.data),
            *task_column_rules(self.method, self.data, TASK_KEYS),
            *train_rules(self.train, self.data),
            *schedule_rules(self.train),
            *best_rules(self.train, self.method, self.data, self.evaluation),
            *evaluation_rules(self.evaluation),
            *safety_rules(self.evaluation),
            *tracking_rules(self.tracking),
            *distributed_rules(self.distributed, self.model, self.method, self.train),
        ]

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """Return the recipe with values replaced by dotted key, checked like any recipe.

        ``recipe.with_settings({"train.optim": "adamw_8bit", "lora.rank": 8})``
        """
        values = self.model_dump()
        for key, value in settings.items():
            section, name = key.split(".")
            values[section][name] = value
        return Recipe.model_validate(values)


def chosen_rules(lora: LoraSection) -> Iterator[Contradiction]:
    """Yield what contradicts itself in ``lora.experts``."""
    if lora.experts == "all":
        return
    if not lora.target_parameters:
        yield Contradiction(
            ("lora.experts", "lora.target_parameters"),
            "chosen experts while lora.target_parameters is empty",
            "adapters on the experts",
            "set lora.experts to all, or name gate_up_proj and down_proj",
            yields=("lora.experts",),
        )
    share, count = lora.experts.share, lora.experts.count
    if share is not None and count is not None:
        yield Contradiction(
            ("lora.experts.count", "lora.experts.share"),
            f"count {count} beside share {share:g}",
            "one of the two",
            "remove lora.experts.count or lora.experts.share",
            yields=("lora.experts.share", "lora.experts.count"),
        )
    elif share is None and count is None:
        yield Contradiction(
            ("lora.experts", "lora.experts.share", "lora.experts.count"),
            "neither share nor count",
            "how many experts of a layer get an adapter",
            "write for example {share: 0.25}, or all",
        )


def section_of(name: str, settings: dict[str, Any]) -> type[Section]:
    """Return the class of a top-level section; of ``method`` the one that its settings name."""
    if name == "method":
        return METHODS[method_name(settings)]
    return SECTIONS[(name,)]


SECTIONS: dict[KeyPath, type[Section]] = {
    ("model",): ModelSection,
    ("lora",): LoraSection,
    ("method",): SftSection,
    ("data",): DataSection,
    ("data", "channel_weights"): ChannelWeights,
    ("train",): TrainSection,
    ("evaluation",): EvaluationSection,
    ("evaluation", "drift"): DriftSection,
    ("evaluation", "safety"): SafetySection,
    ("evaluation", "safety", "judge"): JudgeSection,
    ("evaluation", "safety", "second_judge"): JudgeSection,
    ("guard",): GuardSection,
    ("export",): ExportSection,
    ("tracking",): TrackingSection,
    ("distributed",): DistributedSection,
}
"""Every mapping of settings by its place in a recipe, outer ones first."""


def fsdp2_obstacle(model: ModelSection, train: TrainSection) -> str | None:
    """Return what FSDP2 cannot spread of a training and what to set instead; else ``None``."""
    for name in ("linear_precision", "head_precision"):
        if getattr(model, name) == "nf4":
            return (
                f"FSDP2 cannot spread model.{name}: nf4, whose scales are not part of the "
                "weight; set it to bf16 or int8, of which each of 4 GPUs holds no more than the "
                "whole in NF4"
            )
    if train.optim != "adamw":
        return (
            f"FSDP2 cannot spread train.optim: {train.optim}, which updates whole "
            "parameters; set it to adamw, whose fp32 moments are spread: each of 4 GPUs holds as "
            "much as the 8-bit ones are together"
        )
    return None


def uneven_experts(experts: int, processes: int) -> str | None:
    """Return why ``experts`` cannot be dealt out to ``processes``; else ``None``."""
    if experts % processes == 0:
        return None
    return (
        f"FSDP2 spreads {experts} experts over {processes} processes, which leaves some without "
        "their share, and packed experts cannot be padded; launch as many processes as divide "
        f"{experts}, or use recipes/accelerate/ddp.yaml"
    )


def chosen_count(lora: LoraSection, experts: int) -> int | None:
    """Return how many of a layer's ``experts`` get an adapter; ``None``: all of them.

    Raises:
        RecipeError: More than there are.
    """
    if lora.experts == "all" or not lora.target_parameters:
        return None
    share, count = lora.experts.share, lora.experts.count
    if count is None:
        assert share is not None  # the recipe has one of the two
        count = max(1, round(share * experts))
    if count > experts:
        raise RecipeError(
            f"lora.experts.count: got {count}, but the base has {experts} experts in a layer; "
            f"expected 1 to {experts}"
        )
    return None if count == experts else count
