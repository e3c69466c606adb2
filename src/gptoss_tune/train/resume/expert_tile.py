"""The tile of tokens that a run's experts see: what it began with, or what this card allows.

The gradients of the factors are sums over tiles, so the tile is a part of a run's bits: one that
continues keeps the tile that it began with, also on a card that would allow another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gptoss_tune.plan.architecture import architecture_of
from gptoss_tune.plan.experts.at_work import tiles
from gptoss_tune.plan.memory import fitted
from gptoss_tune.plan.training_setup import TrainingSetup

if TYPE_CHECKING:
    from gptoss_tune.train.context import RunContext


def settled_tile(context: RunContext) -> int | None:
    """Return the tokens of a tile; ``None``: a whole micro-batch. Rank 0 decides for all.

    Args:
        context: Of the run. A recipe that names a tile has it; ``auto`` is what the run began with,
            or the largest that the plan allows on this process's GPU, and all on a CPU.
    """
    recipe, before, device = context.recipe, context.start.before, context.device
    asked = recipe.train.expert_tile
    if asked != "auto":
        return asked
    if before is not None:
        return before.get("expert_tile")
    if device.type != "cuda":
        return None
    setup = TrainingSetup(
        architecture_of(str(context.base.path)),
        recipe.model,
        recipe.lora,
        recipe.method,
        recipe.data,
        recipe.train,
        context.state.num_processes,
        context.parallelism,
        recipe.distributed.context_parallel,
    )
    tiled = fitted(setup, torch.cuda.mem_get_info(device)[1])
    return tiled.tile_tokens if tiles(tiled) > 1 else None
