"""Whether the trackers of a recipe are installed, asked before anything heavy is loaded."""

from __future__ import annotations

from gptoss_tune.error_hints import missing_extra, missing_tracker
from gptoss_tune.errors import MachineError
from gptoss_tune.recipe.schema import TrackingSection


def refuse_missing_tracker(tracking: TrackingSection) -> None:
    """Stop a run before it begins when what it tracks with is not installed.

    Raises:
        MachineError: Names each tracker that is asked for and missing, and its extra.
    """
    asked = {"wandb": tracking.wandb, "trackio": tracking.trackio}
    absent = [
        f"tracking.{name} is {value}, and {extra}; or set tracking.{name}=disabled"
        for name, value in asked.items()
        if value != "disabled" and (extra := missing_extra(name)) is not None
    ]
    absent += [
        f"tracking.report_to: {said}, or take it out of the list"
        for name in tracking.report_to
        if (said := missing_tracker(name)) is not None
    ]
    if absent:
        raise MachineError("\n".join(absent))
