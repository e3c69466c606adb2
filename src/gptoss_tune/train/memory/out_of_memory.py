"""Out-of-memory errors in one message: what was full, what lowers the peak, what is kept.

A full GPU and a full host fail in different words. Memory that the system's killer takes back ends
the process without any, and is not seen here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from gptoss_tune.error_hints import allocators_words, is_out_of_memory
from gptoss_tune.errors import GptossTuneError, MachineError
from gptoss_tune.plan.advice import Advice, advice
from gptoss_tune.plan.architecture import architecture_of
from gptoss_tune.plan.training_setup import TrainingSetup
from gptoss_tune.recipe import Recipe
from gptoss_tune.recipe.schema import Parallelism
from gptoss_tune.run import checkpoints

_GIB = 2**30
_MOST_ADVICE = 5


@contextlib.contextmanager
def explained(recipe: Recipe, strategy: Parallelism = "ddp") -> Iterator[None]:
    """Turn running out of memory into one message with the plan's advice.

    Args:
        recipe: What is trained.
        strategy: How the model lies on several GPUs, for the plan.

    Raises:
        MachineError: The memory of this process's device, or the host's, was full.
    """
    try:
        yield
    except GptossTuneError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(describe(allocators_words(error), recipe, strategy)) from error


def describe(said: str, recipe: Recipe, strategy: Parallelism) -> str:
    """Return the message: where, what the allocator said, what helps, what is kept."""
    lines = [f"out of memory {_place()}: {said}"]
    found = _advice(recipe, strategy)
    if found:
        lines.append(
            "what lowers the peak, each on top of those above it (calculated, of one process):"
        )
        for entry in found[:_MOST_ADVICE]:
            words = " ".join(entry.overrides)
            lines.append(f"  {entry.peak / _GIB:7.2f} GiB  {words} - {entry.cost}")
    if not recipe.train.auto_find_batch_size and recipe.train.per_device_train_batch_size > 1:
        lines.append(
            "or train.auto_find_batch_size=true, which halves the micro-batch before the first "
            "step until one fits"
        )
    newest = next(iter(checkpoints.published(Path(recipe.train.output_dir))), None)
    if newest is not None:
        lines.append(f"{newest} is kept; the run continues from it once there is room")
    return "\n".join(lines)


def _place() -> str:
    """Return which device of which rank was full."""
    rank = os.environ.get("RANK")
    who = (
        f" of rank {rank}" if rank is not None and os.environ.get("WORLD_SIZE", "1") != "1" else ""
    )
    if not torch.cuda.is_available():
        return f"on the host{who}"
    free, total = torch.cuda.mem_get_info()
    ours = torch.cuda.memory_reserved()
    others = total - free - ours
    words = (
        f"on the GPU{who} ({torch.cuda.get_device_name()}, {total / _GIB:.1f} GiB, of which this "
        f"process held {ours / _GIB:.1f}"
    )
    # A context of our own takes about half a GiB.
    return words + (f" and others {others / _GIB:.1f})" if others > _GIB else ")")


def _advice(recipe: Recipe, strategy: Parallelism) -> list[Advice]:
    """Return all that lowers the planned peak of a recipe, which did not fit whatever it says."""
    try:
        architecture = architecture_of(recipe.model.name_or_path)
    except GptossTuneError:
        return []  # a base whose shapes are not known without asking the Hub
    setup = TrainingSetup(
        architecture,
        recipe.model,
        recipe.lora,
        recipe.method,
        recipe.data,
        recipe.train,
        recipe.distributed.num_processes,
        strategy,
        recipe.distributed.context_parallel,
    )
    return advice(setup, 0)
