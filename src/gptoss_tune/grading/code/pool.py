"""Several runs at a time, for graders of many answers and for rewards.

Threads are enough: each waits for a process. As many run as there are processors that this process
may use, because a run that gets half a processor needs twice its wall clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from gptoss_tune.grading.code.sandbox import Job, Outcome, run

_Item = TypeVar("_Item")
_Got = TypeVar("_Got")


def processors() -> int:
    """Return how many runs go at a time unless told otherwise."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def run_many(jobs: Iterable[Job], *, parallel: int | None = None) -> list[Outcome]:
    """Run jobs, so many at a time, and return their outcomes in their order.

    Args:
        jobs: What to run.
        parallel: Runs at a time; ``None``: one for each processor.

    Raises:
        MachineError: A supervisor could not be started, or died; the others have ended.
    """
    return mapped(run, jobs, parallel)


def mapped(
    work: Callable[[_Item], _Got], items: Iterable[_Item], parallel: int | None
) -> list[_Got]:
    """Return what ``work`` gives for each item, in order; the first failure ends it for all."""
    with ThreadPoolExecutor(parallel or processors(), thread_name_prefix="code") as threads:
        running = [threads.submit(work, item) for item in items]
        try:
            return [future.result() for future in running]
        except BaseException:
            for future in running:
                future.cancel()
            raise
