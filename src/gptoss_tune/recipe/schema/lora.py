"""The recipe's ``lora`` section, and which experts it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from gptoss_tune.recipe.schema.value_types import Count, FromText, PathText, Section, Unique


class ChosenExperts(Section):
    """Which experts of a layer get an adapter: those that the training data uses most."""

    share: Annotated[float, Field(gt=0, le=1), FromText] | None = None
    """Share of a layer's experts; either this or count."""
    count: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Experts of a layer; either this or share."""
    tokens: Count | None = None
    """Tokens that choosing reads at most, of the first epoch's first rows; null: all data once."""


def _experts_kind(value: Any) -> str:
    return "chosen" if isinstance(value, dict | ChosenExperts) else "all"


Experts = Annotated[
    Annotated[Literal["all"], Tag("all")] | Annotated[ChosenExperts, Tag("chosen")],
    Discriminator(_experts_kind),
]
"""Which experts get an adapter; a mapping has mistakes of its own, and not those of a word."""


class LoraSection(Section):
    """Which adapters are trained, on attention and on experts."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapters, and of the experts' where expert_rank is null."""
    alpha: Annotated[float, Field(gt=0, le=65536), FromText] = 32.0
    """The update is scaled by alpha / rank."""
    expert_rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rank on the experts; null: rank."""
    expert_alpha: Annotated[float, Field(gt=0, le=65536), FromText] | None = None
    """Alpha on the experts; null: what keeps the scaling alpha / rank."""
    target_modules: Annotated[list[Literal["q_proj", "k_proj", "v_proj", "o_proj"]], Unique] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    ]
    """Attention projections that get an adapter."""
    target_parameters: Annotated[list[Literal["gate_up_proj", "down_proj"]], Unique] = [
        "gate_up_proj",
        "down_proj",
    ]
    """Expert weights that get an adapter, one per expert."""
    experts: Experts = "all"
    """Experts that get one: all, or the share or count of each layer that the data uses most."""
    layers: (
        Annotated[list[Annotated[int, Field(ge=0, le=1023)]], Field(min_length=1), Unique] | None
    ) = None
    """Numbers of the layers that get adapters, from 0; null: every layer."""
    merge_aware: bool = False
    """Train through the rounding of the MXFP4 export, so that nothing is lost in it."""
    init_from: PathText | None = None
    """Adapter or run to start from, of the same ranks and targets; null: fresh factors."""
