"""Addresses beyond 2^31 elements, without the memory: pages nobody touches cost nothing."""

import mmap
import sys

import pytest
import torch
from gptoss_kernels import LowRankTerm, combine, grouped_matmul, ragged_outer
from gptoss_kernels.testing import assert_close

FLOAT32 = 1e-6
STRIDE = 2**30
"""Elements from row to row: the third row starts at 2^31."""
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs memory that is mapped when touched"),
    pytest.mark.interpreter,  # where there is a GPU test_gpu.py does this at full size
]


def untouched(size):
    """Return ``size`` bytes of address space; MAP_NORESERVE has a name since Python 3.13 only."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)


def spread(values):
    """Return a copy of ``values`` whose first dimension has a stride of 2^30 elements."""
    size = 4 * (STRIDE * (values.shape[0] - 1) + values[0].numel())
    memory = torch.frombuffer(untouched(size), dtype=torch.float32)
    strides = (STRIDE, *values.contiguous().stride()[1:])
    return memory.as_strided(values.shape, strides).copy_(values)


def test_rows_matrices_and_low_rank_rows():
    generator = torch.Generator().manual_seed(0)
    rows, w = (torch.randn(s, generator=generator) for s in ((3, 32), (3, 40, 32)))
    low, factor = (torch.randn(s, generator=generator) for s in ((3, 4), (3, 40, 4)))
    offsets = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    expected = grouped_matmul(rows, w, offsets, low_rank=LowRankTerm(low, factor, 0.5))
    actual = grouped_matmul(
        spread(rows),
        spread(w),
        offsets,
        low_rank=LowRankTerm(spread(low), spread(factor), 0.5),
        backend="triton",
    )
    assert_close("out", actual, expected, FLOAT32)


def test_gathered_rows():
    rows, w = torch.randn((3, 32)), torch.randn((1, 16, 32))
    offsets = torch.tensor([0, 3], dtype=torch.int32)
    indices = torch.tensor([2, 0, 2], dtype=torch.int32)
    options = {"token_indices": indices}
    expected = grouped_matmul(rows, w, offsets, **options)
    actual = grouped_matmul(spread(rows), w, offsets, **options, backend="triton")
    assert_close("out", actual, expected, FLOAT32)


def test_ragged_outer():
    skinny, wide = torch.randn((3, 4)), torch.randn((3, 32))
    offsets = torch.tensor([0, 2, 3], dtype=torch.int32)
    expected = ragged_outer(skinny, wide, offsets)
    actual = ragged_outer(spread(skinny), spread(wide), offsets, backend="triton")
    assert_close("outer", actual, expected, FLOAT32)


def test_combine_of_the_last_row_of_many():
    """2^31 values lie before the row that is read."""
    columns, count = 2**14, 2**17 + 1
    memory = untouched(4 * columns * count)
    rows = torch.frombuffer(memory, dtype=torch.float32).view(count, columns)
    rows[-1, :5] = torch.arange(1.0, 6.0)
    index = torch.tensor([[count - 1]], dtype=torch.int32)
    assert combine(rows, index, backend="triton")[0, :6].tolist() == [1, 2, 3, 4, 5, 0]
