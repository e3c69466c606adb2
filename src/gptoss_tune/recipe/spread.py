"""How several GPUs share a model, and what of a recipe FSDP2 cannot spread over them.

Said once, for the run that would refuse it and for the plan that should know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gptoss_tune.recipe.schema import Recipe

Spread = Literal["ddp", "fsdp2"]
"""``ddp``: each GPU holds the whole model; ``fsdp2``: each holds a share and gathers layers."""


def unspreadable(recipe: Recipe) -> str | None:
    """Return what FSDP2 cannot spread of ``recipe`` and what to set instead; else ``None``."""
    if recipe.model.linear_precision == "nf4":
        return (
            "FSDP2 cannot spread model.linear_precision: nf4, whose scales are not part of the "
            "weight; set it to bf16, of which each of 4 GPUs holds no more than the whole in NF4"
        )
    if recipe.train.optim != "adamw":
        return (
            f"FSDP2 cannot spread train.optim: {recipe.train.optim}, which updates whole "
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
