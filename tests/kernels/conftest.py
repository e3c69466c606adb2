"""Fixtures of the kernel tests; tests/conftest.py sets Triton's interpreter where it is needed."""

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
