"""The recipe's ``method`` section: one class a method, so that each has settings of its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from gptoss_tune.recipe.schema.grpo import GrpoSection
from gptoss_tune.recipe.schema.lora import LoraSection
from gptoss_tune.recipe.schema.value_types import FromText, Section


class SftSection(Section):
    """Supervised fine-tuning: the tokens of the answers, by weight, and all tokens of raw text."""

    name: Literal["sft"] = "sft"
    """The method: sft is supervised fine-tuning."""


Reference = Literal["base", "init_adapter", "none"]
"""What a preference is measured against: the base, the adapter of ``lora.init_from``, nothing."""
Analysis = Literal["counted", "ignored"]
Share = Annotated[float, Field(ge=0, lt=0.5), FromText]
_Beta = Annotated[float, Field(gt=0, le=1000), FromText]
_Weight = Annotated[float, Field(ge=0, le=1000), FromText]


class DpoSection(Section):
    """Direct preference optimisation: the chosen answer gains on the rejected one."""

    name: Literal["dpo"]
    """The method: dpo is direct preference optimisation, on pairs."""
    analysis: Analysis = "counted"
    """Whether the chain of thought is part of an answer, or is its context alone."""
    beta: _Beta = 0.1
    """How strongly the model is held to the reference: the margin's factor in the sigmoid."""
    label_smoothing: Share = 0.0
    """Share of the pairs that are taken to be labelled the wrong way round."""
    length_normalized: bool = False
    """Compare log-probabilities per token instead of their sums."""
    sft_weight: _Weight = 0.0
    """Weight of the chosen answer's own mean loss, which keeps its log-probability from falling."""
    reference: Reference | None = None
    """Log-probabilities compared with; null: init_adapter with lora.init_from, else base."""


class IpoSection(Section):
    """Identity preference optimisation: the margin is drawn to 1 / (2 beta), and not beyond."""

    name: Literal["ipo"]
    """The method: ipo is identity preference optimisation, on pairs."""
    analysis: Analysis = "counted"
    """Whether the chain of thought is part of an answer, or is its context alone."""
    beta: _Beta = 0.1
    """Half the inverse of the margin that is aimed at; the paper's tau."""
    length_normalized: bool = True
    """Compare log-probabilities per token, as the paper's results do, instead of their sums."""
    sft_weight: _Weight = 0.0
    """Weight of the chosen answer's own mean loss, which keeps its log-probability from falling."""
    reference: Reference | None = None
    """Log-probabilities compared with; null: init_adapter with lora.init_from, else base."""


class SimpoSection(Section):
    """SimPO: mean log-probabilities compared with a margin, without a reference."""

    name: Literal["simpo"]
    """The method: simpo compares mean log-probabilities, on pairs, without a reference."""
    analysis: Analysis = "counted"
    """Whether the chain of thought is part of an answer, or is its context alone."""
    beta: _Beta = 2.0
    """Factor of the difference of the mean log-probabilities."""
    gamma: Annotated[float, Field(ge=0, le=1000), FromText] = 1.0
    """Margin that the chosen answer is to lead by, after beta."""
    label_smoothing: Share = 0.0
    """Share of the pairs that are taken to be labelled the wrong way round."""
    sft_weight: _Weight = 0.0
    """Weight of the chosen answer's own mean loss, which keeps its log-probability from falling."""


class OrpoSection(Section):
    """ORPO: supervised fine-tuning on the chosen answer, and its odds against the rejected one."""

    name: Literal["orpo"]
    """The method: orpo adds an odds ratio to supervised fine-tuning, on pairs, no reference."""
    analysis: Analysis = "counted"
    """Whether the chain of thought is part of an answer, or is its context alone."""
    beta: _Beta = 0.1
    """Weight of the odds ratio beside the chosen answer's loss; the paper's lambda."""


class KtoSection(Section):
    """KTO: answers labelled good or bad one by one, each against the reference."""

    name: Literal["kto"]
    """The method: kto is Kahneman-Tversky optimisation, on answers with a label each."""
    analysis: Analysis = "counted"
    """Whether the chain of thought is part of an answer, or is its context alone."""
    beta: _Beta = 0.1
    """How strongly the model is held to the reference."""
    desirable_weight: Annotated[float, Field(gt=0, le=1000), FromText] = 1.0
    """Weight of the good answers."""
    undesirable_weight: Annotated[float, Field(gt=0, le=1000), FromText] = 1.0
    """Weight of the bad answers."""
    reference: Literal["base", "init_adapter"] | None = None
    """Log-probabilities compared with; null: init_adapter with lora.init_from, else base."""


METHODS: dict[str, type[Section]] = {
    "sft": SftSection,
    "dpo": DpoSection,
    "ipo": IpoSection,
    "simpo": SimpoSection,
    "orpo": OrpoSection,
    "kto": KtoSection,
    "grpo": GrpoSection,
}
"""The section of every method by its name."""


def method_name(settings: Any) -> str:
    """Return which method the values of the section, or a section, are of; ``sft`` without a name.

    What is no name at all is returned as text, and is then no method's.
    """
    if isinstance(settings, dict):
        return str(settings.get("name") or "sft")
    return str(getattr(settings, "name", settings))


# One class a method, so that each has its own settings and no other's.
MethodSection = Annotated[
    Annotated[SftSection, Tag("sft")]
    | Annotated[DpoSection, Tag("dpo")]
    | Annotated[IpoSection, Tag("ipo")]
    | Annotated[SimpoSection, Tag("simpo")]
    | Annotated[OrpoSection, Tag("orpo")]
    | Annotated[KtoSection, Tag("kto")]
    | Annotated[GrpoSection, Tag("grpo")],
    Discriminator(method_name),
]
"""How the rows become a loss; a recipe without the section means ``sft``."""


def reference_of(method: MethodSection, lora: LoraSection) -> Reference:
    """Return what ``method`` measures against; ``none`` for one that has no reference."""
    if isinstance(method, SftSection | SimpoSection | OrpoSection):
        return "none"
    if isinstance(method, GrpoSection) and not method.kl_weight:
        return "none"
    return method.reference or ("base" if lora.init_from is None else "init_adapter")
