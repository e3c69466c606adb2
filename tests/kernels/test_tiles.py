"""Tiles: the measured table wins, defaults fit, the scripts around them run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gptoss_kernels import tiles
from gptoss_kernels.tiles import Gpu, Tiles, choose_tiles

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"
H200 = Gpu("nvidia-h200", "sm_90", 132)
SHAPE = {"n": 5760, "k": 2880, "dtype": torch.bfloat16}


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """Let the table be read from an empty folder; return how to write one."""
    monkeypatch.setattr(tiles, "_TUNED", tmp_path)
    caches = (tiles._tuned_file, tiles._tuned_entries)
    for cache in caches:
        cache.cache_clear()
    yield lambda content: (tmp_path / "nvidia-h200.json").write_text(json.dumps(content))
    for cache in caches:
        cache.cache_clear()


def test_a_measured_entry_wins_for_its_shape_only(tuned):
    default = choose_tiles("swiglu", **SHAPE, gpu=H200)
    chosen = {"block_m": 64, "block_n": 32, "block_k": 16, "warps": 2, "stages": 5}
    entry = {"product": "swiglu", "n": 5760, "k": 2880, "turned": False, "dtype": "bfloat16"}
    tuned({"tiles": [entry | {"tiles": chosen, "milliseconds": 1.0}]})
    tiles._tuned_file.cache_clear()
    tiles._tuned_entries.cache_clear()
    assert choose_tiles("swiglu", **SHAPE, gpu=H200) == Tiles(**chosen)
    for other in ({"turned": True}, {"n": 2880}, {"dtype": torch.float16}):
        assert choose_tiles("swiglu", **(SHAPE | other), gpu=H200) == default
    assert choose_tiles("store", **SHAPE, gpu=H200) != Tiles(**chosen)


def test_tiles_measured_at_one_rank_do_not_serve_a_larger_one(tuned):
    """At rank 64 a tile of rank 16 may ask for more shared memory than there is."""
    shape = {"product": "store", "n": 2880, "k": 2880, "turned": False, "dtype": "bfloat16"}
    cut = {"block_m": 128, "block_n": 256, "block_k": 64, "warps": 8, "stages": 4}
    large = cut | {"block_n": 64}
    tuned({"tiles": [shape | {"rank": 64, "tiles": large}, shape | {"rank": 16, "tiles": cut}]})
    asked = {"n": 2880, "k": 2880, "dtype": torch.bfloat16, "gpu": H200}
    for rank, expected in ((0, cut), (8, cut), (16, cut), (17, large), (64, large)):
        assert choose_tiles("store", rank=rank, **asked) == Tiles(**expected), rank
    assert choose_tiles("store", rank=65, **asked) not in (Tiles(**cut), Tiles(**large))


def test_few_rows_an_expert_take_shorter_tiles(tuned):
    tall = choose_tiles("swiglu", **SHAPE, gpu=H200, rows_per_expert=2048)
    short = choose_tiles("swiglu", **SHAPE, gpu=H200, rows_per_expert=512)
    assert (tall.block_m, short.block_m) == (256, 128)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_90", "sm_103", "sm_121", "gfx942"])
def test_every_architecture_has_tiles(architecture, tuned):
    for rank in (0, 16, 64, 256):
        found = choose_tiles("store", **SHAPE, gpu=Gpu("x", architecture, 100), rank=rank)
        assert found.block_m >= 16


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=BENCH,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the scripts measure for real")
def test_bench_and_tune_run_on_a_cpu(tmp_path):
    small = ("--cpu", "--model", "tiny", "--rank", "4", "--runs", "1")
    done = run("bench.py", *small, "--tokens", "8", "--only", "bf16 base")
    assert done.returncode == 0, done.stderr
    assert "split LoRA on grouped_mm, bf16 base" in done.stdout
    done = run("tune.py", *small, "--tokens", "8", "--limit", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "interpreter.json").read_text())
    assert {entry["product"] for entry in written["tiles"]} == {
        "swiglu",
        "store",
        "skinny",
        "packed_swiglu",
        "packed",
    }
    for entry in written["tiles"]:
        Tiles(**entry["tiles"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the scripts measure for real")
def test_no_gpu_is_said():
    done = run("bench.py")
    assert done.returncode == 3
    assert "no GPU" in done.stderr


@pytest.mark.slow
def test_the_split_lora_rival_computes_the_same_layer():
    """A rival that computes something else would be no rival."""
    code = """
import torch
from measure import SHAPES
from ops_experts import _dense, random_layer, split_lora
from dataclasses import replace
from gptoss_kernels import experts
inputs = random_layer(SHAPES["tiny"], 16, 8)
dtype = inputs.hidden_states.dtype
dense = replace(inputs, gate_up=_dense(inputs.gate_up, dtype), down=_dense(inputs.down, dtype))
d_out = torch.randn_like(inputs.hidden_states)
theirs = split_lora(dense, d_out)()
ours = torch.autograd.grad(experts(*inputs.arguments()), list(inputs.leaves().values()), d_out)
print(max(float((a - b).norm() / b.norm()) for a, b in zip(theirs, ours)))
"""
    environment = os.environ | {"TRITON_INTERPRET": "0" if torch.cuda.is_available() else "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCH, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < (0.05 if torch.cuda.is_available() else 1e-5)
