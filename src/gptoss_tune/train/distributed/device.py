"""The device of a process: a GPU that can be used, or one thread of the CPU.

Where CUDA does not start, torch warns and counts no GPU, and a run of hours would go on as one of
months on the CPU. A machine without a GPU trains on its CPU.

On a CPU torch computes on every core, with threads that wait for each other by spinning. Beside
other work that is many times slower than one thread and never the same; a small model is as fast on
one. And sums over other numbers of threads come out in another order, so a number that depends on
the machine would give other bits on the next one. To measure both at the start was the alternative:
the answer depends on what else runs in that second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gptoss_tune.error_hints import cause_of
from gptoss_tune.errors import MachineError

_DEVICE = Path("/dev/nvidiactl")
_VARIABLE = "OMP_NUM_THREADS"
_ABSENT = ("no nvidia driver", "no cuda gpus are available", "no hip gpus are available")


def refuse_unusable_gpu(device: Path = _DEVICE) -> None:
    """Stop where a GPU is in the machine and torch cannot use it.

    Args:
        device: The file through which the driver speaks, which containers get with a GPU only.

    Raises:
        MachineError: The driver is too old, CUDA does not start, or torch is built for the CPU.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.cuda.is_available() or hidden in ("", "-1"):
        return
    on_cpu = "set CUDA_VISIBLE_DEVICES='' to train on the CPU"
    if torch.version.cuda is None and torch.version.hip is None:
        if device.exists():
            raise MachineError(
                f"this machine has an NVIDIA GPU, and torch {torch.__version__} is built for the "
                f"CPU; install a build of torch with CUDA, or {on_cpu}"
            )
        return
    try:
        torch.cuda.init()
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        absent = any(words in text.lower() for words in _ABSENT)
        # A process forked from one that found no GPU is told only that it may not ask again.
        if absent or ("forked subprocess" in text and not device.exists()):
            return
        told = cause_of(error) or f"CUDA does not start here ({text}); check `nvidia-smi`"
        raise MachineError(f"{told}; or {on_cpu}") from error


@contextmanager
def steady_threads() -> Iterator[bool]:
    """Compute on one thread, where there is no GPU and OMP_NUM_THREADS says nothing.

    Yields whether that was so. The variable is set meanwhile: accelerate would choose a number by
    the cores of the machine as soon as several processes start on a CPU.
    """
    if torch.cuda.is_available() or _VARIABLE in os.environ:
        yield False
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ[_VARIABLE] = "1"
    try:
        yield True
    finally:
        del os.environ[_VARIABLE]
        torch.set_num_threads(before)
