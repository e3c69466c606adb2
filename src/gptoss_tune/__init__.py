"""gptoss-tune: fine-tune gpt-oss with its experts resident in MXFP4.

The main job in a notebook::

    from gptoss_tune import load_recipe, merge, train, verify

    recipe = load_recipe("recipes/gpt-oss-20b/qlora.yaml", ["train.max_steps=100"])
    summary = train(recipe)
    merged = merge(summary.folder, "merged", format="mxfp4")
    verify(merged.folder, summary.folder).require()

Data flows through the rooms in the order recipe -> harmony -> weights -> model -> train -> export.
Importing this package costs no torch: a recipe is checked in the time of a keystroke, and what
needs more is imported when it is asked for. ``train`` and ``plan`` are rooms, which can be called
(``gptoss_tune.train(recipe)``) because the word for the job and for the room is the same.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gptoss_tune.errors import (
    CheckpointError,
    DataError,
    GptossTuneError,
    GuardError,
    HubError,
    MachineError,
    RecipeError,
    RunInterrupted,
)

if TYPE_CHECKING:
    from gptoss_tune.export.hub.push import Pushed
    from gptoss_tune.export.verify.verify import Verification
    from gptoss_tune.harmony.dataset.render_one import render
    from gptoss_tune.harmony.render import Example
    from gptoss_tune.plan.plan import Plan, plan
    from gptoss_tune.recipe import Recipe, load_recipe
    from gptoss_tune.train.finish import RunSummary
    from gptoss_tune.train.loss import LossFunction, LossOutputs, weighted_token_loss
    from gptoss_tune.train.observers.observer import StepObserver
    from gptoss_tune.train.run import train
    from gptoss_tune.workflows.finished_run import Merged, merge, push, verify

__version__ = "0.1.0"

_WHERE = {
    "Example": "harmony.render",
    "LossFunction": "train.loss",
    "LossOutputs": "train.loss",
    "Merged": "workflows.finished_run",
    "Plan": "plan.plan",
    "Pushed": "export.hub.push",
    "Recipe": "recipe",
    "RunSummary": "train.finish",
    "StepObserver": "train.observers.observer",
    "Verification": "export.verify.verify",
    "load_recipe": "recipe",
    "merge": "workflows.finished_run",
    "push": "workflows.finished_run",
    "render": "harmony.dataset.render_one",
    "verify": "workflows.finished_run",
    "weighted_token_loss": "train.loss",
}
"""The room of each public name; ``plan`` and ``train`` are rooms themselves."""

__all__ = [
    "CheckpointError",
    "DataError",
    "Example",
    "GptossTuneError",
    "GuardError",
    "HubError",
    "LossFunction",
    "LossOutputs",
    "MachineError",
    "Merged",
    "Plan",
    "Pushed",
    "Recipe",
    "RecipeError",
    "RunInterrupted",
    "RunSummary",
    "StepObserver",
    "Verification",
    "__version__",
    "load_recipe",
    "merge",
    "plan",
    "push",
    "render",
    "train",
    "verify",
    "weighted_token_loss",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that ``import gptoss_tune`` costs nothing."""
    if name in ("plan", "train"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, those not yet imported included."""
    return sorted(__all__)
