"""Schema of a recipe: one frozen, strict pydantic model per section; ``recipe.py`` joins them.

A setting exists once, here: its name (the word that users of transformers, PEFT and TRL know), its
range, its default and one line of documentation, from which the loader's messages and the editors'
JSON Schema are both made. Settings that contradict each other are the business of ``rules.py``.

An argparse mirror of every setting was the alternative: the settings then exist twice, and a
default that differs between the two is found in a run's results. Overrides are ``key=value`` with
the same checks instead.

There is no field that could hold a token, allow code from a checkpoint or name something to
import; paths are relative to the current directory.
"""

from __future__ import annotations

from gptoss_tune.recipe.schema.best import EarlyStopping, Goal, KeepBest
from gptoss_tune.recipe.schema.distributed import DistributedSection, Parallelism
from gptoss_tune.recipe.schema.grpo import GrpoSection
from gptoss_tune.recipe.schema.guard import ExportSection, GuardSection
from gptoss_tune.recipe.schema.lora import (
    ChosenExperts,
    Experts,
    LoraSection,
)
from gptoss_tune.recipe.schema.methods import (
    METHODS,
    Analysis,
    DpoSection,
    IpoSection,
    KtoSection,
    MethodSection,
    OrpoSection,
    Reference,
    SftSection,
    Share,
    SimpoSection,
    method_name,
    reference_of,
)
from gptoss_tune.recipe.schema.model import ModelSection
from gptoss_tune.recipe.schema.schedule import ScheduleArguments
from gptoss_tune.recipe.schema.tracking import Tracker, TrackingSection
from gptoss_tune.recipe.schema.train import TrainSection

__all__ = [
    "METHODS",
    "Analysis",
    "ChosenExperts",
    "DistributedSection",
    "DpoSection",
    "EarlyStopping",
    "Experts",
    "ExportSection",
    "Goal",
    "GrpoSection",
    "GuardSection",
    "IpoSection",
    "KeepBest",
    "KtoSection",
    "LoraSection",
    "MethodSection",
    "ModelSection",
    "OrpoSection",
    "Parallelism",
    "Reference",
    "ScheduleArguments",
    "SftSection",
    "Share",
    "SimpoSection",
    "Tracker",
    "TrackingSection",
    "TrainSection",
    "method_name",
    "reference_of",
]
