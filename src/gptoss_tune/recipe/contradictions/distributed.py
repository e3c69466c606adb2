"""Rules of ``distributed``: what several processes cannot share, and settings without effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from gptoss_tune.recipe.contradictions.contradiction import Contradiction

if TYPE_CHECKING:
    from gptoss_tune.recipe.schema import (
        DistributedSection,
        MethodSection,
        ModelSection,
        TrainSection,
    )


def distributed_rules(
    distributed: DistributedSection,
    model: ModelSection,
    method: MethodSection,
    train: TrainSection,
) -> Iterator[Contradiction]:
    """Yield what contradicts itself in ``distributed``, and what cannot be trained so."""
    if distributed.strategy is not None and distributed.num_processes == 1:
        yield Contradiction(
            ("distributed.strategy", "distributed.num_processes"),
            f"{distributed.strategy} while distributed.num_processes is 1",
            "several processes that share the work",
            "set distributed.num_processes, or remove distributed.strategy",
            yields=("distributed.strategy",),
        )
    if distributed.context_parallel > 1:
        yield from _context_parallel_rules(distributed, model, method, train)


def _context_parallel_rules(
    distributed: DistributedSection,
    model: ModelSection,
    method: MethodSection,
    train: TrainSection,
) -> Iterator[Contradiction]:
    each, processes = distributed.context_parallel, distributed.num_processes
    key = "distributed.context_parallel"
    if processes % each:
        yield Contradiction(
            (key, "distributed.num_processes"),
            f"{each} while distributed.num_processes is {processes}",
            "a number that divides distributed.num_processes: groups of so many processes share "
            "each row",
            f"set distributed.num_processes={-(-processes // each) * each}, or another "
            "context_parallel",
            yields=(key,),
        )
    if model.attention == "flex":
        yield Contradiction(
            ("model.attention", key),
            f"flex with distributed.context_parallel {each}",
            "an engine that can be given a part of a row: auto, torch_flash, fa4, triton, cudnn or "
            "eager",
            "remove model.attention",
        )
    if method.name == "grpo":
        yield Contradiction(
            (key, "method.name"),
            f"{each} with method.name grpo",
            "1: each process plays episodes of its own, and trains whole rows",
            "remove distributed.context_parallel",
        )
    elif method.name != "sft":
        yield Contradiction(
            (key, "method.name"),
            f"{each} with method.name {method.name}",
            "1, or method.name sft: a preference's loss hangs on the log-probability of a whole "
            "answer, whose tokens lie on several processes then",
            "remove distributed.context_parallel; pairs too long for a GPU fit with shorter "
            "data.max_length",
        )
    if train.auto_find_batch_size:
        yield Contradiction(
            ("train.auto_find_batch_size", key),
            f"true with distributed.context_parallel {each}",
            "false: a step is tried on each process alone, and a row that several share needs all "
            "of them for one",
            "remove train.auto_find_batch_size, and set the micro-batch by `gptoss-tune plan`",
        )
