"""What the user asked for: YAML and ``key=value`` overrides in, one frozen Recipe out; no torch."""

from gptoss_tune.recipe.schema import (
    ChannelWeights,
    DataSection,
    DataSource,
    LoraSection,
    ModelSection,
    Recipe,
    TrackingSection,
    TrainSection,
    WorldSection,
)

__all__ = [
    "ChannelWeights",
    "DataSection",
    "DataSource",
    "LoraSection",
    "ModelSection",
    "Recipe",
    "TrackingSection",
    "TrainSection",
    "WorldSection",
]
