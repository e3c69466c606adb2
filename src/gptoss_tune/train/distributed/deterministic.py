"""``train.deterministic``: gradients with the same bits in every run on a GPU.

Two libraries do not give them by default: flash attention adds dQ in whatever order its blocks end,
and cuBLAS picks a workspace by what else runs. torch has one switch for both. Its kernels for
``index_add_`` and ``scatter_`` change as well, and an operation that has no such kernel raises,
which is meant: a warning in its place (``warn_only``) leaves flash attention as it was.

What torch does not know of is ours or fixed by its own form: no Triton kernel here adds atomically,
and the engines of attention are chosen among those that can (``choose_engine``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gptoss_tune.errors import MachineError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""Under which cuBLAS gives the same bits; NVIDIA, cuBLAS, "Results Reproducibility"."""
PRICE = "about 5.5 % of a step where others measured it, not measured here"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch compute with the same bits in every run while this lasts.

    Entered before the first product on a GPU, since cuBLAS reads its workspace when it starts; that
    variable of the environment stays, torch's switch goes back to what it was.

    Args:
        wanted: ``train.deterministic``; false: nothing is done.

    Raises:
        MachineError: cuBLAS was told otherwise, or may have started already.
    """
    if not wanted:
        yield
        return
    _fix_cublas()
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    buffers: Any = torch.utils.deterministic
    filled = buffers.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    # Every buffer would be written once more; the kernels' tests show that none is read unwritten.
    buffers.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        buffers.fill_uninitialized_memory = filled


def _fix_cublas() -> None:
    value = os.environ.get(CUBLAS)
    if value in WORKSPACES:
        return
    if value is not None:
        raise MachineError(
            f"train.deterministic: {CUBLAS} is {value!r} and has to be one of "
            f"{', '.join(WORKSPACES)}; unset it, and the run sets it itself"
        )
    if torch.cuda.is_initialized():
        raise MachineError(
            f"train.deterministic: CUDA has started in this process already, and cuBLAS may have "
            f"read its settings; start Python with {CUBLAS}={WORKSPACES[0]}"
        )
    os.environ[CUBLAS] = WORKSPACES[0]
