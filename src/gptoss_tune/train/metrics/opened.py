"""The trackers of a run: its own file, the display, and what the recipe names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptoss_tune.run.folder import RunFolder
from gptoss_tune.train.metrics.metrics_file import MetricsFile
from gptoss_tune.train.metrics.progress import ProgressDisplay
from gptoss_tune.train.metrics.trackers import Tracker
from gptoss_tune.train.metrics.trackio_tracker import TrackioTracker
from gptoss_tune.train.metrics.transformers_tracker import TransformersTracker
from gptoss_tune.train.metrics.wandb_tracker import WandbTracker

if TYPE_CHECKING:
    from gptoss_tune.train.context import RunContext


def trackers_of(context: RunContext, run_id: str) -> list[Tracker | ProgressDisplay]:
    """Return what gets every line of metrics, the file first."""
    run, tracking = context.run, context.recipe.tracking
    trackers: list[Tracker | ProgressDisplay] = [
        MetricsFile(RunFolder(run).metrics),
        ProgressDisplay(context.console),
    ]
    config = context.recipe.model_dump(mode="json")
    if tracking.wandb != "disabled":
        trackers.append(WandbTracker(tracking, run, config, run_id))
    if tracking.trackio != "disabled":
        trackers.append(TrackioTracker(tracking, run, config))
    return [*trackers, *(TransformersTracker(name, tracking, run) for name in tracking.report_to)]
