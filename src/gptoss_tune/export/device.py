"""The device of an export's arithmetic, by the name that a user gives."""

from __future__ import annotations

import platform
import re

import torch

from gptoss_tune.errors import CheckpointError, MachineError

_NAME = re.compile(r"cpu|cuda(?::(\d{1,3}))?")


def compute_device(name: str) -> torch.device:
    """Return the device ``name``: the CPU or a CUDA GPU.

    Apple's ``mps`` has no float64, in which survivals are summed, and ``meta`` holds no values.

    Raises:
        CheckpointError: Another name.
        MachineError: There is no such GPU here.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(f"device {name[:60]!a}: expected cpu, cuda or cuda:NUMBER")
    if name != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(match[1] or 0) >= count:
            raise MachineError(f"device {name}: this machine has {count} CUDA GPUs; use cpu")
    return torch.device(name)


def arithmetic_of(device: torch.device) -> str:
    """Return what decides the order of sums on ``device``: where it differs, last bits may.

    A change that is added to a weight may then round to the neighbour of what it rounds to here.
    """
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"torch {torch.__version__} on {kind}"
