"""The books of a run: tokens trained, throughput, memory, and the figures of each layer.

One object that the trainer asks around each step, so that counting stands apart from training. Its
counts go into each checkpoint (``tokens.json``) and on from there.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.model.footprint import footprint
from gptoss_tune.run.record import update_record
from gptoss_tune.train.data.token_counts import TokenAccount
from gptoss_tune.train.metrics import layers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gptoss_tune.recipe.data_schema import DataSource
    from gptoss_tune.train.guard.guard import Guard


class StepMetrics(TrainerCallback):
    """Keep the books of one run; every rank has one, rank 0 writes."""

    def __init__(
        self, run: Path, sources: list[DataSource], device: torch.device, checkpoint: Path | None
    ) -> None:
        """Keep them in the folder ``run``.

        Args:
            run: The run's folder.
            sources: ``data.train``, whose tokens are counted one by one.
            device: Of this process.
            checkpoint: What the run continues from; ``None`` for a fresh start.
        """
        self.account = TokenAccount(sources, device)
        self._run, self._device, self._checkpoint = run, device, checkpoint
        self._layers: layers.LayerFigures | None = None
        self._logged_tokens = self._logged_step = 0
        self._logged_at = 0.0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Go on from the checkpoint's counts, and start the clock.

        Raises:
            CheckpointError: It holds none that can be read.
        """
        if self._checkpoint is not None:
            self.account.resume(self._checkpoint, first_rank=state.is_world_process_zero)
        self._layers = layers.LayerFigures(
            self._run / layers.FILE,
            layers=model.config.num_hidden_layers,
            logging_steps=int(args.logging_steps),
            max_steps=state.max_steps,
        )
        if state.is_world_process_zero:
            self._layers.open(state.global_step)
            update_record(self._run, footprint=[asdict(row) for row in footprint(model)])
        self._logged_tokens, self._logged_step = self.account.read(), state.global_step
        self._logged_at = time.monotonic()

    def add(self, counts: NDArray[Any]) -> None:
        """Count a micro-batch of the step at hand."""
        self.account.add(counts)

    def before_clipping(self, model: nn.Module, step: int, guard: Guard) -> None:
        """Look at a step's gradients before anything changes them, and at the first step's load."""
        if self._layers is not None:
            self._layers.before_clipping(model, step)
            if step == 1 and guard.load is not None:
                self._layers.first_load(guard.load.counts)

    def end_step(self, *, applied: bool) -> None:
        """Enter the step at hand, which was applied or left out."""
        self.account.end_step(applied=applied)

    def leave_out(self, seconds: float) -> None:
        """Count ``seconds`` that were not spent on training out of the next throughput."""
        self._logged_at += seconds

    def figures(self, state: TrainerState, guard: Guard) -> dict[str, float]:
        """Return what a line of training metrics says besides losses; every rank has to ask."""
        total = self.account.total()
        tokens = int(total[:, -1].sum())
        now, step = time.monotonic(), state.global_step
        seconds, steps = max(now - self._logged_at, 1e-9), step - self._logged_step
        found = {
            "tokens_per_second": (tokens - self._logged_tokens) / seconds,
            "seconds_per_step": seconds / max(steps, 1),
            "memory_gib": peak_memory_bytes(self._device) / 2**30,
            **self.account.metrics(total, last=step == state.max_steps),
            **guard.metrics(),
        }
        self._logged_tokens, self._logged_step, self._logged_at = tokens, step, now
        if self._layers is not None:
            self._layers.log(step, guard.logged_load, steps)
        return found

    def save(self, folder: Path, *, writes: bool) -> None:
        """Put the counts into a checkpoint that is being written; every rank has to ask."""
        total = self.account.total()
        if writes:
            self.account.save(folder, total)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the tokens into the run's record."""
        total = self.account.total()
        if state.is_world_process_zero:
            update_record(self._run, tokens=self.account.record(total))

    def close(self) -> None:
        """Close the file of the layers."""
        if self._layers is not None:
            self._layers.close()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak bytes allocated on a GPU, or the process's peak resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
