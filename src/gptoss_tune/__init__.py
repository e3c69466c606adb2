"""gptoss-tune: fine-tune gpt-oss with its experts resident in MXFP4.

Data flows through the rooms in the order recipe -> harmony -> model -> train -> export. Importing
this package costs no torch: a recipe is checked in the time of a keystroke.
"""

from gptoss_tune.errors import (
    CheckpointError,
    DataError,
    GptossTuneError,
    HubError,
    MachineError,
    RecipeError,
    RunInterrupted,
)

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
]
