"""The recipe's ``guard`` and ``export`` sections: what a run and its export must hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gptoss_tune.recipe.schema.value_types import FromText, Section


class GuardSection(Section):
    """What is watched while a run trains; one that trains nothing, or NaN, is stopped."""

    check_steps: Annotated[int, Field(ge=0, le=1000)] = 2
    """First updates in which every adapter must get a gradient and move; 0: not checked."""
    max_nonfinite_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 3
    """Steps in a row with NaN or infinity that are left out; one more stops the run."""
    loss_spike: Annotated[float, Field(gt=1, le=1_000_000), FromText] | None = 3.0
    """Warn when a step's loss is this many times the recent mean; null: never."""
    router_collapse: Annotated[float, Field(gt=0, lt=1), FromText] | None = 0.7
    """Warn when the entropy of a layer's expert load falls to this share of its first value."""


class ExportSection(Section):
    """What the export of the finished run must hold."""

    min_survival: Annotated[float, Field(ge=0, le=1), FromText] = 0.9
    """Share of the experts' change that an MXFP4 export must keep, or it is refused."""
