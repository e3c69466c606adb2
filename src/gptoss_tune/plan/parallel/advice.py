"""More GPUs for a row that does not fit one: the way out that cuts no row."""

from __future__ import annotations

from dataclasses import replace

from gptoss_tune.plan.advice import SHARED, Elsewhere, changed_words, way_out
from gptoss_tune.plan.gpus import Gpu
from gptoss_tune.plan.training_setup import TrainingSetup

_MOST_GPUS = 16


def more_gpus_a_row(setup: TrainingSetup, card: Gpu) -> Elsewhere | None:
    """Return the fewest GPUs that fit when they share the model and each row, rows uncut.

    Args:
        setup: A training that does not fit on ``card``.
        card: The GPU.

    Returns:
        The way; ``None`` where up to 16 of them are not enough, or the method cannot share rows.
    """
    if setup.method.name != "sft" or setup.train.auto_find_batch_size:
        return None
    groups = setup.num_processes // setup.context_parallel
    each = 2 * setup.context_parallel
    while groups * each <= _MOST_GPUS:
        count = groups * each
        if setup.architecture.experts % count == 0:
            found = _with(setup, card, count, each)
            if found is not None:
                return found
        each *= 2
    return None


def _with(setup: TrainingSetup, card: Gpu, count: int, each: int) -> Elsewhere | None:
    spread = replace(setup, num_processes=count, strategy="fsdp2", context_parallel=each)
    given = (
        *changed_words(setup, SHARED),
        f"distributed.num_processes={count}",
        "distributed.strategy=fsdp2",
        f"distributed.context_parallel={each}",
    )
    what = f"{count} of these cards, which share the model, and {each} of them each row"
    found = way_out(what, spread.with_settings(SHARED), card, given)
    if found is None or any(word.startswith("data.max_length=") for word in found.overrides):
        return None
    return found
