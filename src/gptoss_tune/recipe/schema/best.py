"""Settings of ``train`` that look at evaluations: which weights are published, when a run ends."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gptoss_tune.recipe.schema.value_types import Count, FromText, Section, Text

Goal = Literal["min", "max"]
"""Whether the lower or the higher value of a figure is the better one."""
Metric = Annotated[Text, Field(examples=["eval_loss"])]


class KeepBest(Section):
    """The figure by which the published adapter is chosen among the evaluated ones."""

    metric: Metric
    """A figure of an evaluation, such as eval_loss or eval_graded."""
    goal: Goal | None = None
    """Which value is better; null: what is known of the figure."""


class EarlyStopping(Section):
    """When a run ends before its last step: its evaluations do not get better any more."""

    patience: Count = Field(examples=[3])
    """Evaluations in a row without an improvement, after which the run ends."""
    min_delta: Annotated[float, Field(ge=0, le=1_000_000), FromText] = 0.0
    """By how much a value has to be better than the last one that was an improvement."""
    metric: Metric | None = None
    """The figure looked at; null: that of keep_best."""
    goal: Goal | None = None
    """Which value is better; null: what is known of the figure."""


def _named(value: Any) -> Any:
    """Read ``eval_loss`` as the mapping that it is short for."""
    return {"metric": value} if isinstance(value, str) else value


KeepBestSetting = Annotated[
    KeepBest | None, BeforeValidator(_named, json_schema_input_type=str | KeepBest | None)
]


def stopping_metric(
    stopping: EarlyStopping, keep_best: KeepBest | None
) -> tuple[str, Goal | None] | None:
    """Return metric and stated goal that end a run; ``None`` where the recipe names none."""
    if stopping.metric is not None:
        return stopping.metric, stopping.goal
    if keep_best is not None:
        return keep_best.metric, stopping.goal or keep_best.goal
    return None
