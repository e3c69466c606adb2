"""The check of the GPU before a run: one that is there and cannot be used stops it.

Where CUDA does not start, torch warns and counts no GPU, and a run of hours would go on as one of
months on the CPU. A machine without a GPU trains on its CPU, as before.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gptoss_tune.error_hints import cause_of
from gptoss_tune.errors import MachineError

_DEVICE = Path("/dev/nvidiactl")
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
        if any(words in str(error).lower() for words in _ABSENT):
            return
        text = str(error).splitlines()[0]
        told = cause_of(error) or f"CUDA does not start here ({text}); check `nvidia-smi`"
        raise MachineError(f"{told}; or {on_cpu}") from error
