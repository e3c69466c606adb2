"""The kernels compiled for GPUs that are not here, by the real compiler in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"
# What one SM has, from NVIDIA's tables and not from our report: shared memory a block may use.
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "sm_120": 101_376}
SHARED["gfx942"] = 65_536
INSTRUCTION = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "sm_120": "mma.sync"}
INSTRUCTION["gfx942"] = "mfma"
LARGE = ["gate_up", "gate_up, bf16 base", "down", "d down", "d gate_up", "gate_up, r 64"]


def run(code_or_script, *arguments):
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    return subprocess.run(
        [sys.executable, *code_or_script, *arguments],
        cwd=BENCH,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("architecture", sorted(SHARED))
def test_no_spills_tensor_cores_and_within_the_card(architecture, tmp_path):
    file = tmp_path / "report.json"
    # The report has these, too; a test run can do without the slowest, least used ones.
    skipped = ("--skip", "fp32", "fp16", "r 128", "r 256", "E 32")
    done = run(["compile_report.py"], "--arch", architecture, "--json", str(file), *skipped)
    assert done.returncode == 0, done.stdout + done.stderr
    results = {result["name"]: result for result in json.loads(file.read_text())}
    assert set(LARGE) <= set(results)
    for name, result in results.items():
        assert result["spilled"] == 0, name
        assert result["shared"] <= SHARED[architecture], name
        if architecture == "gfx942":  # 256 vector and 256 accumulation registers a lane
            assert result["registers"] <= 512, name
            continue
        assert result["registers"] <= 255, name
        assert result["registers"] * 32 * result["warps"] <= 65_536, name
    for name in LARGE:
        assert INSTRUCTION[architecture] in results[name]["instructions"], name


def test_the_report_sees_a_tile_that_spills_and_one_without_tensor_cores():
    code = """
from dataclasses import replace
from compile_report import compile_variant
from compile_variants import variants

good = next(v for v in variants("sm_90") if v.name == "gate_up")
large = {"BLOCK_M": 256, "BLOCK_N": 256, "BLOCK_K": 64}
wrong = replace(good, constants=good.constants | large, stages=4)
print(compile_variant(wrong, "sm_90").problems)
single = {k: "*fp32" if t == "*bf16" else t for k, t in good.types.items()}
small = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}
plain = replace(good, types=single, constants=good.constants | small, stages=2)
print(compile_variant(plain, "sm_90").problems)
"""
    done = run(["-c", code])
    first, second = done.stdout.splitlines()
    assert "spills" in first
    assert "shared memory" in first
    assert "no wgmma" in second
