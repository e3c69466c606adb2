"""The kernels compiled for GPUs that are not here, by the real compiler in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
BENCH = KERNELS / "bench"
# What one SM has, from NVIDIA's tables and not from our report: shared memory a block may use.
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "sm_120": 101_376}
SHARED["gfx942"] = 65_536
INSTRUCTION = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "sm_120": "mma.sync"}
INSTRUCTION["gfx942"] = "mfma"
LARGE = ["gate_up", "down", "d down", "d gate_up", "gate_up, bf16 base", "gate_up, r 64"]
IN_LOOP = ["gate_up, in-loop", "down, in-loop"]
FACTORS = ["dA gate_up", "dB gate_up", "dA down", "dB down"]
ATTENTION = [
    f"attention {kernel}, {layer}"
    for kernel in ("forward", "key value", "query")
    for layer in ("window", "full", "part of a row, window", "part of a row, full")
]
LOSS = ["cross entropy", "cross entropy, by rows", "cross entropy gradient, by rows"]
# The report has these, too; a test run can do without the slowest, least used ones.
SKIPPED = ("fp32", "fp16", "r 128", "r 256", "no LoRA", "E 128", "few rows", "alone")


def run(code_or_script, *arguments, kernels=None):
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    if kernels is not None:
        environment["PYTHONPATH"] = str(kernels)
    return subprocess.run(
        [sys.executable, *code_or_script, *arguments],
        cwd=BENCH,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(SHARED))
def test_no_spills_pipelined_wide_and_within_the_card(architecture, tmp_path):
    file = tmp_path / "report.json"
    done = run(
        ["compile_report.py"], "--arch", architecture, "--json", str(file), "--skip", *SKIPPED
    )
    assert done.returncode == 0, done.stdout + done.stderr
    codes = {result["name"]: result["code"] for result in json.loads(file.read_text())}
    assert {*LARGE, *IN_LOOP, *FACTORS, *ATTENTION, *LOSS, "dYB and bias"} <= set(codes)
    for name, code in codes.items():
        assert code["spilled"] == 0, name
        assert code["shared"] <= SHARED[architecture], name
        if architecture == "gfx942":  # 256 vector and 256 accumulation registers a lane
            assert code["registers"] <= 512, name
            continue
        assert code["registers"] <= 255, name
        assert code["registers"] * 32 * code["warps"] <= 65_536, name
        assert not {"1", "2"} & set(code["stores"]), name
    for name in LARGE:
        assert INSTRUCTION[architecture] in codes[name]["instructions"], name
    if architecture == "gfx942":
        return
    for name in [*LARGE, *IN_LOOP, *FACTORS]:
        assert max(codes[name]["copy_waits"]) > 0, name
    for name in LARGE:
        assert set(codes[name]["copies"]) == {"16"}, name
    for name in IN_LOOP:  # 8 for the packed bytes under Triton 3.9
        assert set(codes[name]["copies"]) <= {"8", "16"}, name
    if architecture == "sm_90":
        for name in LARGE:
            assert max(codes[name]["product_waits"]) >= 1, name


@pytest.mark.slow
def test_the_report_sees_tiles_that_are_wrong():
    code = """
from compile_report import problems_of
from fake_driver import pretend_gpu
from launches import BF16, META, projection
from gptoss_kernels.persistent import TileMaps, launch_product
from gptoss_kernels.tiles import Tiles
from machine_code import machine_code
import torch

def problems(tiles, packed=False):
    weight = projection(5760, 2880, 32, 0, BF16, packed).weight
    offsets = torch.empty(33, dtype=torch.int32, device=META)
    rows, out = (torch.empty(65536, n, dtype=BF16, device=META) for n in (2880, 5760))
    with pretend_gpu("sm_90") as fake:
        try:
            tile_map = TileMaps(offsets, 65536).get(tiles.block_m, 0, 32)
            launch_product(rows, weight if packed else weight.mT, tile_map, tiles, out)
        except Exception as error:  # of a kernel that does not fit, which is compiled all the same
            assert "shared memory" in str(error), error
        kernel = fake.compiled[-1]
        print(problems_of(kernel, machine_code(kernel.machine_code(), "sm_90")))

problems(Tiles(128, 256, 64, 4, 3))
problems(Tiles(64, 64, 64, 4, 1))
problems(Tiles(16, 64, 128, 4, 3), packed=True)
problems(Tiles(64, 64, 64, 4, 3, programs=9))
"""
    done = run(["-c", code])
    assert done.returncode == 0, done.stderr
    spilled, serial, bytewise, crowded = done.stdout.splitlines()
    assert "spills" in spilled
    assert "no copy runs ahead" in serial
    assert "loads of one or two bytes" in bytewise
    assert "9 programs a processor" in crowded


@pytest.mark.slow
def test_the_report_sees_a_loop_that_waits_for_every_copy(tmp_path):
    """Flattened, the tile loop waits for the rank-r term at each step: the pipeline is off."""
    shutil.copytree(KERNELS / "gptoss_kernels", tmp_path / "gptoss_kernels")
    file = tmp_path / "gptoss_kernels" / "_triton" / "_grouped_matmul.py"
    right = "tl.num_programs(0)):"
    assert file.read_text().count(right) == 1
    file.write_text(file.read_text().replace(right, "tl.num_programs(0), flatten=True):"))
    skipped = (*SKIPPED, "in-loop", "grouped_mm", "base", "merge", "r 64", "window", "full")
    only = ("--arch", "sm_90", "--only", "d gate_up", "--skip", *skipped)
    done = run(["compile_report.py"], *only, kernels=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no copy runs ahead" in done.stdout
    assert "no product runs ahead" in done.stdout
    assert "stores of {2:" in done.stdout
