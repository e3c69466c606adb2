"""Launches of a training step, counted without a GPU in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAYERS = 2


@pytest.mark.slow
def test_every_launch_of_a_large_batch_is_counted():
    script = Path(__file__).parents[2] / "kernels" / "bench" / "host_time.py"
    options = ["--layers", str(LAYERS), "--repeats", "1"]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, str(script), *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {
        row["checkpointing"]: row for row in json.loads(done.stdout.splitlines()[-1])["host_time"]
    }
    assert list(rows) == ["none", "selective", "full"]
    for mode, row in rows.items():
        kernels = row["kernels"]
        launches = row["forward_launches"] + row["backward_launches"]
        assert launches == sum(kernels.values())
        assert f"= {launches:>4} launches" in done.stdout
        # Both projections in both directions: what is computed again is not decoded again, and
        # nothing is decoded inside a product, as few rows would be.
        assert kernels["_dequantize_kernel"] == 4 * LAYERS
        again = {"none": 0, "selective": 2, "full": 3}[mode]
        assert kernels["_grouped_matmul_kernel"] == (8 + again) * LAYERS
        assert kernels["_attention_forward_kernel"] == (1 + (mode == "full")) * LAYERS
        assert kernels["_routing_count_kernel"] == LAYERS
        assert kernels["_cross_entropy_kernel"] == 1
