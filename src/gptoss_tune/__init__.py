"""gptoss-tune: fine-tune gpt-oss with its experts resident in MXFP4.

Data flows through the rooms in the order recipe -> harmony -> model -> train -> export. Importing
this package costs no torch: a recipe is checked in the time of a keystroke.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gptoss_tune.errors import (
    CheckpointError,
    DataError,
    GptossTuneError,
    HubError,
    MachineError,
    RecipeError,
    RunInterrupted,
)

if TYPE_CHECKING:
    from gptoss_tune.recipe import load_recipe

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "DataError",
    "GptossTuneError",
    "HubError",
    "MachineError",
    "RecipeError",
    "RunInterrupted",
    "__version__",
    "load_recipe",
]


def __getattr__(name: str) -> Any:
    """Import ``load_recipe`` when it is asked for, so that ``import gptoss_tune`` costs nothing."""
    if name == "load_recipe":
        from gptoss_tune.recipe import load_recipe

        return load_recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
