"""What the machine is: GPU, versions, ceilings, and whether the carried kernels are taken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import torch
from cache_key import MADE, cache_key
from lines import Lines, dry
from measure import copy_peak, environment, matmul_peak

PACKAGES = (
    *("torch", "triton", "transformers", "peft", "accelerate", "liger-kernel", "pydantic"),
    *("numpy", "safetensors", "pytest", "axolotl", "unsloth"),
)
CARD = "name,memory.total,driver_version,clocks.max.sm,power.limit,temperature.gpu"


def run(name: str, lines: Lines) -> None:
    lines.say(environment=environment())
    lines.say(python=platform.python_version(), **{p: _version(p) for p in PACKAGES})
    if not dry():
        query = ["nvidia-smi", f"--query-gpu={CARD}", "--format=csv,noheader"]
        found = subprocess.run(query, capture_output=True, text=True, check=False)
        lines.say(card=found.stdout.strip(), memory_bytes=torch.cuda.mem_get_info()[1])
        lines.say(**_cache())
    lines.say(matmul_tflops=round(matmul_peak() / 1e12, 1), copy_gb_s=round(copy_peak() / 1e9))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cache() -> dict[str, object]:
    """Return whether this machine's cache key is the one that the kernels were compiled under."""
    made = Path(os.environ.get("TRITON_CACHE_DIR", "."), MADE)
    if not made.is_file():
        return {"kernels_came_along": 0}
    told = json.loads(made.read_text(encoding="utf-8"))
    here = cache_key()
    return {
        "kernels_came_along": told["kernels"],
        "cache_key_taken": here == told["key"],
        "cache_key": here[:16],
    }
