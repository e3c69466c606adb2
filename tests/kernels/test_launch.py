"""Launches past Triton's binder: a kernel found again is the one that Triton would take."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"

CODE = """
import importlib
import torch
from fake_driver import _Launcher, pretend_gpu
from gptoss_kernels import backend, persistent
from gptoss_kernels.persistent import TileMaps, launch_product
from gptoss_kernels.tiles import Tiles

combine = importlib.import_module("gptoss_kernels.combine")
plain, count, seen, launches = backend.launch, _Launcher.__call__, [], [0]

def recorded(self, *arguments):
    seen.append((arguments[:3], arguments[9:]))
    count(self, *arguments)

def checked(kernel, grid, *arguments, **options):
    for _ in range(2):  # the second time without Triton's binder
        plain(kernel, grid, *arguments, **options)
        found = backend._COMPILED[backend._specialization(kernel, arguments, options)]
        assert found is kernel[grid](*arguments, **options), "another kernel than Triton's"
        (ours_grid, ours), (grid_of_triton, theirs) = seen[-2:]
        assert ours_grid == grid_of_triton and len(ours) == len(theirs)
        assert all(a is b or a == b for a, b in zip(ours, theirs)), "other arguments than Triton's"
        launches[0] += 1

_Launcher.__call__ = recorded
combine.launch = persistent.launch = checked
bf16, fp32 = torch.bfloat16, torch.float32

def rows(count, columns, offset=0, dtype=bf16):
    return torch.zeros(count * columns + offset, dtype=dtype)[offset:].view(count, columns)

with pretend_gpu("sm_90", "cpu"):
    for offset, dtype in ((0, bf16), (1, bf16), (0, fp32)):  # at a multiple of 16 bytes and not
        for weights in (None, torch.zeros(8, 4, dtype=dtype)):
            indices = torch.zeros(8, 4, dtype=torch.int32)
            combine.launch_combine(rows(32, 64, offset, dtype), indices, weights)
    tile_map = TileMaps(torch.zeros(3, dtype=torch.int32), 64).get(64, 0, 2)
    matrices, tiles = torch.zeros(2, 48, 64, dtype=bf16), Tiles(64, 16, 64, 4, 2)
    one_row = torch.zeros(64, dtype=bf16)
    for x in (
        rows(64, 64),
        rows(64, 65)[:, :64],  # rows that are no multiple of 16 apart
        one_row.as_strided((1, 64), (2**31 + 16, 1)),  # a distance beyond 32 bits
    ):
        launch_product(x, matrices, tile_map, tiles, rows(64, 48))
    launch_product(rows(64, 64), matrices.mT.contiguous().mT, tile_map, tiles, rows(64, 48))
with pretend_gpu("gfx942", "cpu"):  # its addresses have 32 bits where a tensor ends within 2 GiB
    indices = torch.zeros(8, 4, dtype=torch.int32)
    long = torch.empty(2**30 + 32 * 64, dtype=bf16)  # never touched
    for whole in (long[: 32 * 64].clone(), long):
        combine.launch_combine(whole[: 32 * 64].view(32, 64), indices)
print(launches[0], len(backend._COMPILED))
"""


@pytest.mark.slow
def test_kernels_found_again_are_those_that_triton_would_take():
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=BENCH,
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    launches, kernels = map(int, done.stdout.split())
    assert launches == 2 * (6 + 4 + 2)
    assert kernels == 6 + 4 + 2 + 1  # and the tile map's
