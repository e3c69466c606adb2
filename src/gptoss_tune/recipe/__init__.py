"""Recipes: YAML and ``key=value`` overrides in, one frozen Recipe out; no torch."""

from gptoss_tune.recipe.data_schema import ChannelWeights, DataSection, DataSource
from gptoss_tune.recipe.dump import ResolvedLine, recipe_yaml, resolved_lines
from gptoss_tune.recipe.evaluation_schema import (
    DriftSection,
    EvaluationSection,
    JudgeSection,
    SafetySection,
)
from gptoss_tune.recipe.json_schema import recipe_json_schema
from gptoss_tune.recipe.load import load_recipe
from gptoss_tune.recipe.mistakes import Mistake, RecipeMistakes
from gptoss_tune.recipe.recipe import Recipe
from gptoss_tune.recipe.schema import (
    DistributedSection,
    ExportSection,
    GuardSection,
    LoraSection,
    ModelSection,
    TrackingSection,
    TrainSection,
)

__all__ = [
    "ChannelWeights",
    "DataSection",
    "DataSource",
    "DistributedSection",
    "DriftSection",
    "EvaluationSection",
    "ExportSection",
    "GuardSection",
    "JudgeSection",
    "LoraSection",
    "Mistake",
    "ModelSection",
    "Recipe",
    "RecipeMistakes",
    "ResolvedLine",
    "SafetySection",
    "TrackingSection",
    "TrainSection",
    "load_recipe",
    "recipe_json_schema",
    "recipe_yaml",
    "resolved_lines",
]
