"""The micro-batch that fits, found before the first step.

A forward and a backward pass over the longest rows is what a step needs at most. Where it does not
fit on one process, the micro-batch of all of them halves and the accumulation grows by as much, so
that every optimizer step still sees the same rows. Nothing has been trained yet and no random
number is used up: the run is the one that the smaller micro-batch in the recipe would have been.

The rejected alternative is the trainer's own ``auto_find_batch_size``: it starts the training again
with nine tenths of the micro-batch and the same accumulation, which changes the effective batch,
and on one process alone, which leaves the others waiting.

What a real step holds besides, the optimizer's moments and DDP's copies of the gradients, is set
aside during the probe, with the plan's allowance for what an allocator cannot use. The probe runs
on the model before DDP wraps it, so nothing in it waits for another process; a model in shares
cannot run so, and is refused.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from gptoss_tune.distributed import sum_over_ranks
from gptoss_tune.error_hints import allocators_words, is_out_of_memory
from gptoss_tune.errors import MachineError, RecipeError
from gptoss_tune.plan.architecture import read_architecture
from gptoss_tune.plan.memory import FRAGMENTATION
from gptoss_tune.plan.weights import FP32_BYTES, adapter_factors, optimizer_bytes
from gptoss_tune.recipe import Recipe
from gptoss_tune.run.record import read_record, update_record
from gptoss_tune.run.start import Start
from gptoss_tune.train.data.collator import BATCH_ONLY
from gptoss_tune.train.memory.out_of_memory import describe
from gptoss_tune.train.metrics.step_metrics import peak_memory_bytes

if TYPE_CHECKING:
    from gptoss_tune.train.context import RunContext
    from gptoss_tune.train.methods import Method


@dataclass(frozen=True)
class Fitted:
    """What a step is made of.

    Attributes:
        recipe: The recipe with the micro-batch that fits.
        asked: Rows of a micro-batch in the recipe.
        probed: Whether it was tried.
    """

    recipe: Recipe
    asked: int
    probed: bool

    def record(self, run: Path) -> None:
        """Write into the run's record what was asked for and what is used."""
        if self.probed:
            train = self.recipe.train
            facts = {
                "asked": self.asked,
                "per_device_train_batch_size": train.per_device_train_batch_size,
                "gradient_accumulation_steps": train.gradient_accumulation_steps,
            }
            update_record(run, micro_batch=facts)


def fit(context: RunContext, method: Method, model: nn.Module, dataset: Any) -> Fitted:
    """Return the recipe with the largest micro-batch that fits, of those that keep the step.

    Args:
        context: Of the run, whose processes all call this. A continued one starts with the
            micro-batch it used before; without ``train.auto_find_batch_size`` nothing is tried.
        method: Gives the batches and their loss.
        model: On its device, not wrapped; weights, gradients and random state are left as found.
        dataset: Rows to train on, with their ``length``.

    Raises:
        RecipeError: The model is spread over the processes.
        MachineError: A single row does not fit.
    """
    recipe, state, console = context.recipe, context.state, context.console
    train = recipe.train
    asked = train.per_device_train_batch_size
    if not train.auto_find_batch_size:
        return Fitted(recipe, asked, probed=False)
    if context.parallelism == "fsdp2":
        raise RecipeError(
            "train.auto_find_batch_size tries a step on each process alone, and a model spread by "
            "FSDP2 needs all of them for one; remove it and set the micro-batch by `gptoss-tune "
            "plan --strategy fsdp2`, or launch with recipes/accelerate/ddp.yaml"
        )
    rows = _used_before(context.start, asked, state)
    spare = _spare_bytes(context, model)
    while True:
        failure = _try_step(context, method, model, dataset, rows, spare)
        # Every process asks, so that all take the same way.
        if not sum_over_ranks(torch.tensor(float(failure is not None), device=state.device)):
            break
        if rows == 1:
            said = failure or "a row fits here, and not on another process, whose message counts"
            raise MachineError(describe(said, recipe, "ddp"))
        rows = next_smaller(rows)
        console.print(f"memory: {asked} rows at once do not fit, {rows} are tried", highlight=False)
    more = {
        "train.per_device_train_batch_size": rows,
        "train.gradient_accumulation_steps": train.gradient_accumulation_steps * (asked // rows),
    }
    if rows != asked:
        words = ", ".join(f"{key}={value}" for key, value in more.items())
        console.print(f"memory: {words}; each optimizer step sees the same rows", highlight=False)
    return Fitted(recipe.with_settings(more), asked, probed=True)


def next_smaller(rows: int) -> int:
    """Return the largest divisor of ``rows`` below it, which is half where even."""
    return max(size for size in range(1, rows // 2 + 1) if rows % size == 0)


def _used_before(start: Start, asked: int, state: PartialState) -> int:
    """Return the micro-batch to start with: the one recorded, where the recipe still allows it."""
    found: list[int] = [asked]
    if state.is_main_process and start.checkpoint is not None:
        recorded = read_record(start.folder).get("micro_batch", {})
        used = recorded.get("per_device_train_batch_size") or asked
        found = [used if 0 < used <= asked and asked % used == 0 else asked]
    if state.num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def _spare_bytes(context: RunContext, model: nn.Module) -> int:
    """Return the device's bytes that a step holds and the probe does not."""
    architecture = read_architecture(context.base.path / "config.json")
    factors, optim = adapter_factors(architecture, context.recipe.lora), context.recipe.train.optim
    moments = 0 if optim == "paged_adamw_8bit" else optimizer_bytes(factors, optim)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    buckets = FP32_BYTES * trained if context.state.num_processes > 1 else 0
    device = context.device
    whole = torch.cuda.mem_get_info()[1] if device.type == "cuda" else peak_memory_bytes(device)
    return moments + buckets + round(FRAGMENTATION * whole)


def _try_step(
    context: RunContext, method: Method, model: nn.Module, dataset: Any, rows: int, spare: int
) -> str | None:
    """Run two micro-batches; return why they do not fit, or None."""
    device = context.device
    failure: str | None = None
    with _as_found(model, device):
        try:
            _step(context, method, model, dataset, rows, spare)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = allocators_words(error)
            # The traceback's frames hold the tensors of the step.
            error.__traceback__ = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return failure


def _step(
    context: RunContext, method: Method, model: nn.Module, dataset: Any, rows: int, spare: int
) -> None:
    recipe, device, pad = context.recipe, context.device, cast(Any, model.config)
    collate = method.collator(pad.pad_token_id, packed=recipe.data.packing)
    loss_of = context.loss or method.loss
    longest = np.argsort(np.asarray(dataset["length"]), kind="stable")[::-1][:rows].tolist()
    # A data set smaller than the micro-batch fills it as often as it takes.
    chosen = [dataset[longest[n % len(longest)]] for n in range(rows)]
    batch = collate(chosen)
    for name in BATCH_ONLY:
        batch.pop(name, None)
    batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    held = torch.empty(spare, dtype=torch.uint8, device=device)
    mixed = recipe.model.dtype == "bfloat16"
    # The second pass adds to the gradients of the first, as accumulation does.
    for _ in range(2):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            loss = loss_of(model, batch).loss_sum
        loss.backward()
        del loss
    del held


@contextmanager
def _as_found(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Give gradients, mode and every random state back as they were."""
    training, python_state, numpy_state = model.training, random.getstate(), np.random.get_state()
    model.train()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        model.train(training)
        for parameter in model.parameters():
            parameter.grad = None
        random.setstate(python_state)
        np.random.set_state(numpy_state)
