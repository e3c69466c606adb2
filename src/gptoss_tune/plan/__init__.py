"""The resource planner: memory, disk, FLOPs and hours of a run, from its recipe alone; no torch.

``plan`` joins the parts: ``architecture``, ``training_setup``, ``weights``, ``memory``, ``disk``,
``flops``, ``evaluation_time``; ``methods`` says what each method adds, ``gpus`` lists cards,
``advice`` says what to change. ``gptoss_tune.plan(recipe)`` is ``plan.plan``.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_tune.plan.gpus import Gpu
    from gptoss_tune.plan.plan import Plan
    from gptoss_tune.recipe import Recipe


class _Room(ModuleType):
    """The room, which can be called; a function of its name would hide it, or be hidden by it."""

    def __call__(self, recipe: Recipe, gpu: Gpu | str = "h100-80gb", **options: Any) -> Plan:
        """Plan a recipe: ``plan.plan``, which also says what the options are.

        Args:
            recipe: What is trained.
            gpu: The card, or its name as ``gptoss-tune plan --gpu`` takes it.
            options: ``gpus``, ``efficiency`` and others of ``plan.plan``.

        Raises:
            RecipeError: No card of that name is known, or what ``plan.plan`` refuses.
        """
        from gptoss_tune.plan.gpus import card
        from gptoss_tune.plan.plan import plan

        return plan(recipe, card(gpu) if isinstance(gpu, str) else gpu, **options)


sys.modules[__name__].__class__ = _Room
