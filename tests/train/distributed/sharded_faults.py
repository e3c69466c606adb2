"""What goes wrong on purpose in runs of two ranks, for ``sharded_ranks.py``."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gptoss_tune.errors import GptossTuneError
from gptoss_tune.model import experts
from gptoss_tune.train import sft
from gptoss_tune.train.distributed import watchdog

Run = Callable[..., Any]
Ended = tuple[str, int, str]
"""Name, exit code and text of the error that ended a run."""

# Both ranks leave a run by themselves here, and a slow one is not to be ended by the other.
watchdog._GRACE_S = 120.0
CUT_OFF = (1, 6)
"""Experts of which one rank holds the first, the other the second."""


def ended_by(run: Run, *args: str) -> Ended:
    """Return what ends a run that does not come to its end."""
    try:
        run(*args)
    except GptossTuneError as error:
        found = (type(error).__name__, error.exit_code, str(error))
    else:
        raise AssertionError(f"{args} came to its end")
    # A process runs once; the next run in this one is not to find that this one's ranks left.
    signs = dist.PrefixStore("ranks", dist.distributed_c10d._get_default_store())
    dist.barrier()
    signs.delete_key(str(dist.get_rank()))
    dist.barrier()
    return found


def interrupted(run: Run, folder: Path, overrides: list[str]) -> Ended:
    """Stop a run by a signal to the second rank, and let both ranks continue a copy of it."""
    stopped, again = folder / "stopped", folder / "stopped-again"
    original = sft.WeightedSftTrainer.log

    def log_and_get_a_signal(self, logs, start_time=None):
        original(self, logs, start_time)
        if self.state.global_step == 1 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    sft.WeightedSftTrainer.log = log_and_get_a_signal
    try:
        found = ended_by(run, stopped.name, *overrides)
    finally:
        sft.WeightedSftTrainer.log = original
    if dist.get_rank() == 0:
        shutil.copytree(stopped, again)
    dist.barrier()
    run(again.name, *overrides)
    return found


def disconnected(run: Run, *overrides: str) -> Ended:
    """Train with every gate_up cut off from its adapters, and two experts of every down."""
    original = experts._projection

    def cut(weight, bias, dtype):
        found = original(weight, bias, dtype)
        count, out_features, in_features = found.logical_shape
        if out_features > in_features:  # gate_up has 2I rows
            return type(found)(found.weight, found.bias)
        keeps = torch.ones(count, 1, 1)
        keeps[list(CUT_OFF)] = 0
        values = found.lora_B.detach()
        return replace(found, lora_B=values + (found.lora_B - values) * keeps)

    experts._projection = cut
    try:
        return ended_by(run, "disconnected", *overrides)
    finally:
        experts._projection = original
