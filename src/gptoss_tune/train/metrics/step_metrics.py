"""Metrics of a step: tokens trained, throughput, memory, and the figures of each layer.

An observer of each step, so that counting stands apart from training. Its counts go into each
checkpoint (``tokens.json``) and on from there.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from gptoss_tune.model.footprint import footprint
from gptoss_tune.run import environment
from gptoss_tune.run.folder import RunFolder
from gptoss_tune.run.record import update_record
from gptoss_tune.train.data.token_counts import TokenAccount
from gptoss_tune.train.metrics import layers
from gptoss_tune.train.observers.observer import GradientStep, LogLine, MicroBatch, StepObserver

if TYPE_CHECKING:
    from gptoss_tune.recipe.data_schema import DataSource


class StepMetrics(StepObserver):
    """Measure the steps of one run; every rank has one, rank 0 writes."""

    file = "tokens.json"
    kept = "count of tokens"

    def __init__(self, run: Path, sources: list[DataSource], device: torch.device) -> None:
        """Measure the run in the folder ``run``.

        Args:
            run: The run's folder.
            sources: ``data.train``, whose tokens are counted one by one.
            device: Of this process.
        """
        self.account = TokenAccount(sources, device)
        self._run, self._device = run, device
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
        """Open the file of the layers, and start the clock."""
        self._layers = layers.LayerFigures(
            RunFolder(self._run).layers,
            layers=model.config.num_hidden_layers,
            logging_steps=int(args.logging_steps),
            max_steps=state.max_steps,
        )
        if state.is_world_process_zero:
            self._layers.open(state.global_step)
            update_record(self._run, footprint=[asdict(row) for row in footprint(model)])
        self._logged_tokens, self._logged_step = self.account.read(), state.global_step
        self._logged_at = time.monotonic()

    def before_forward(self, batch: MicroBatch) -> None:
        """Count a micro-batch of the step at hand."""
        self.account.add(batch.counts)

    def on_gradients(self, step: GradientStep) -> None:
        """Look at a step's gradients before anything changes them, and at the first step's load."""
        if self._layers is not None:
            self._layers.on_gradients(step.model, step.number)
            if step.number == 1:
                self._layers.first_load(step.expert_load)

    def after_gradients(self, step: GradientStep) -> None:
        """Enter the step's tokens, as trained or as left out."""
        self.account.end_step(applied=step.applied)

    def leave_out(self, seconds: float) -> None:
        """Count ``seconds`` that were not spent on training out of the next throughput."""
        self._logged_at += seconds

    def figures(self, line: LogLine) -> dict[str, float]:
        """Return throughput, memory and tokens since the last line; every rank has to ask."""
        total = self.account.total()
        tokens, steps = int(total[:, -1].sum()), line.step - self._logged_step
        seconds = max(line.at - self._logged_at, 1e-9)
        return {
            "tokens_per_second": (tokens - self._logged_tokens) / seconds,
            "seconds_per_step": seconds / max(steps, 1),
            "memory_gib": peak_memory_bytes(self._device) / 2**30,
            **self.account.metrics(total, last=line.last),
        }

    def after_log(self, line: LogLine) -> None:
        """Write the line of the layers, and begin the next stretch."""
        steps = line.step - self._logged_step
        if self._layers is not None:
            self._layers.log(line.step, line.expert_load, steps)
        self._logged_tokens = int(line.figures["tokens"])
        self._logged_step, self._logged_at = line.step, line.at

    def state_dict(self) -> dict[str, Any]:
        """Return the tokens of all ranks, for a checkpoint; every rank has to ask."""
        return self.account.state_dict()

    def load_state_dict(self, state: dict[str, Any], *, first_rank: bool) -> None:
        """Go on from a checkpoint's count."""
        self.account.load_state_dict(state, first_rank=first_rank)

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
    return environment.peak_memory_bytes()
