"""What every part of a run knows: the recipe, the folder, the processes, the console."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from rich.console import Console

from gptoss_tune.environments.environment import Environment
from gptoss_tune.recipe import Recipe
from gptoss_tune.recipe.schema import Parallelism
from gptoss_tune.run.start import Start
from gptoss_tune.train.distributed.context_groups import ContextGroups
from gptoss_tune.train.distributed.signals import StopOnSignal
from gptoss_tune.train.distributed.watchdog import Watchdog
from gptoss_tune.train.loss import LossFunction
from gptoss_tune.weights import Checkpoint


@dataclass(frozen=True)
class RunContext:
    """One run on one process, from before its model is built to its last line.

    Attributes:
        recipe: What is trained; the micro-batch that fits may replace the one that was asked for.
        command: The recipe's path and the overrides as typed.
        start: The run's folder, and where in it the run starts.
        base: The opened base.
        state: The processes, which all run the same.
        parallelism: How they share the model.
        groups: Which of them share a row.
        console: Where the run speaks; quiet on all ranks but the first.
        stop: Knows of signals.
        watch: Knows of ranks that are lost.
        started: Monotonic seconds at which this process began.
        loss: The caller's own; ``None``: the method's.
        expert_tile: Tokens that go through the experts at a time; ``None``: a whole micro-batch.
        environment: ``module:Class`` of the command line that plays episodes; ``None``: built in.
        environment_class: What that names; set once the recipe is known to use it.
        steadied: Whether one thread was chosen to compute on, as nobody said another number.
    """

    recipe: Recipe
    command: tuple[str, ...]
    start: Start
    base: Checkpoint
    state: PartialState
    parallelism: Parallelism
    groups: ContextGroups
    console: Console
    stop: StopOnSignal
    watch: Watchdog
    started: float
    loss: LossFunction | None = None
    expert_tile: int | None = None
    steadied: bool = False
    environment: str | None = None
    environment_class: Callable[[], Environment] | None = None

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.start.folder

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return torch.device(self.state.device or "cpu")

    @property
    def held_out(self) -> bool:
        """Whether the recipe holds rows back to evaluate on."""
        data = self.recipe.data
        return data.eval is not None or data.eval_fraction is not None
