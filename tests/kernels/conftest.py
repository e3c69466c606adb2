"""Fixtures of the kernel tests; tests/conftest.py sets Triton's interpreter where it is needed."""

import numpy as np
import pytest
import torch

_POISON = {torch.uint8: 255, torch.int8: -77, torch.int32: -77, torch.int64: -77, torch.bool: True}


@pytest.fixture
def poisoned_empty(monkeypatch):
    """Fill every tensor allocated without values: whoever reads one before writing it fails."""

    def poisoned(allocate):
        def call(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(_POISON.get(tensor.dtype, float("nan")))

        return call

    for owner, name in [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ]:
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


@pytest.fixture
def exact_dots(monkeypatch, device):
    """Let the interpreter round a dot product once, whatever the order of its sum.

    numpy's BLAS sums a row in another order where the row lies elsewhere in its block or the block
    elsewhere in memory, which depends on the CPU and not on the kernel. A GPU needs no such help.
    """
    if device.type == "cuda":
        return
    from triton.runtime import interpreter

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        total = a.data.astype(np.float64) @ b.data.astype(np.float64) + d.data
        return interpreter.TensorHandle(total.astype(d.data.dtype), d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
