"""The machine of a run before it starts: its GPUs, its libraries, and days on its CPU."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from gptoss_tune.error_hints import missing_tracker
from gptoss_tune.errors import MachineError
from gptoss_tune.plan.flops import Work
from gptoss_tune.plan.gpus import detected_gpus
from gptoss_tune.plan.machine.cpu import LEAST_TOKENS, refuse_days_on_a_cpu
from gptoss_tune.preflight.obstacles import Obstacles
from gptoss_tune.recipe.schema import (
    DistributedSection,
    ModelSection,
    TrackingSection,
    TrainSection,
)

_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Files of a GPU's driver; a container may have one without the driver's tools."""
_SOON_DONE = 1e14
"""FLOP that the slowest CPU computes within a day: nothing has to be measured for them."""


def gpus_of(distributed: DistributedSection, obstacles: Obstacles) -> int | None:
    """Return how many GPUs a process here would see; ``None`` where nothing tells.

    More processes than GPUs are an obstacle; on a machine without one they share its CPU.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return 0
    found = detected_gpus()
    if not found:
        return None if any(map(os.path.exists, _DRIVERS)) else 0
    asked = distributed.num_processes
    with obstacles.looking("distributed.num_processes"):
        if asked > len(found):
            several = f"{len(found)} GPUs" if len(found) > 1 else "one GPU"
            raise MachineError(
                f"got {asked}, a GPU for each, and this machine shows {several}; set "
                f"distributed.num_processes={len(found)}"
                f"{'' if len(found) > 1 else ' distributed.strategy=null'}, look at "
                "CUDA_VISIBLE_DEVICES, or write the job of several machines with `gptoss-tune "
                "launch`"
            )
    return len(found)


def look_at_libraries(
    model: ModelSection, train: TrainSection, tracking: TrackingSection, obstacles: Obstacles
) -> None:
    """Look for the libraries that some settings need, without importing them."""
    linear, head = model.linear_precision == "nf4", model.head_precision == "nf4"
    wanted = (
        ("model.linear_precision", linear, "bitsandbytes", "train", "int8"),
        ("model.head_precision", head, "bitsandbytes", "train", "int8"),
        ("train.optim", train.optim != "adamw", "bitsandbytes", "train", "adamw"),
        ("tracking.wandb", tracking.wandb != "disabled", "wandb", "wandb", "disabled"),
        ("tracking.trackio", tracking.trackio != "disabled", "trackio", "trackio", "disabled"),
    )
    for key, asked, library, extra, instead in wanted:
        with obstacles.looking(key):
            if asked and importlib.util.find_spec(library) is None:
                section, _, name = key.partition(".")
                value = {"model": model, "train": train, "tracking": tracking}[section]
                raise MachineError(
                    f"{getattr(value, name)} needs {library}, which is not installed; run `pip "
                    f"install 'gptoss-tune[{extra}]'`, or set {key}: {instead}"
                )

    for name in tracking.report_to:
        with obstacles.looking("tracking.report_to"):
            if (said := missing_tracker(name)) is not None:
                raise MachineError(f"{said}, or take it out of the list")


def look_at_time(work: Work, base: Path | None, obstacles: Obstacles) -> None:
    """Look how long a training takes on this CPU; to be asked where there is no GPU.

    Args:
        work: Of its plan.
        base: The base's folder; ``None`` where it would have to be downloaded.
        obstacles: What is found.
    """
    tokens = LEAST_TOKENS if work.tokens is None else work.tokens
    if tokens * work.flops.total < _SOON_DONE and base is not None:
        return
    with obstacles.looking("model.name_or_path"):
        refuse_days_on_a_cpu(work)
