"""Timing, memory and ceilings: what every benchmark of this folder measures with.

Medians of device events; the two ceilings (a large copy, a large bf16 product) are measured in the
same process, so that a fraction of the peak is a fraction of what this card does today. On a CPU
the clock is the host's and the numbers say nothing about a GPU: that is for checking the scripts.
"""

from __future__ import annotations

import ctypes
import platform
import re
import statistics
import subprocess
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Shape:
    """One expert layer of a released model.

    T tokens, K experts per token, H hidden, I intermediate, E experts.
    """

    name: str
    layers: int
    num_experts: int
    top_k: int
    hidden: int
    intermediate: int

    def layer_flops(self, tokens: int, rank: int) -> float:
        """Useful operations of forward and backward: dX but no dW for the frozen base."""
        rows = tokens * self.top_k
        base = 2 * rows * 3 * self.hidden * self.intermediate
        lora = 2 * rows * rank * (2 * self.hidden + 3 * self.intermediate)
        return 2 * base + 3 * lora

    def layer_bytes(self, tokens: int) -> float:
        """The fewest bytes of forward and backward with an MXFP4 base and bf16 activations.

        Packed weights once each way; X, out, dO and dX; Z written once and read once.
        """
        weights = self.num_experts * 3 * self.hidden * self.intermediate * 17 / 32
        rows = 2 * 2 * tokens * self.top_k * 2 * self.intermediate
        return 2 * weights + 4 * 2 * tokens * self.hidden + rows


SHAPES = {
    "gpt-oss-20b": Shape("gpt-oss-20b", 24, 32, 4, 2880, 2880),
    "gpt-oss-120b": Shape("gpt-oss-120b", 36, 128, 4, 2880, 2880),
    "tiny": Shape("tiny", 2, 4, 2, 64, 32),
    # What the interpreter can do in a moment: every stage, one tile of most.
    "least": Shape("least", 1, 2, 1, 32, 32),
}


@dataclass(frozen=True)
class Measured:
    """Time and memory of one candidate; the host's time only where it was asked for."""

    milliseconds: float
    spread: float
    peak_bytes: int
    host_milliseconds: float = 0.0


def device_of() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_ms(
    call: Callable[[], object], *, warmup: int = 3, runs: int = 20
) -> tuple[float, float]:
    """Return the median time of a call and the distance between its quartiles, in milliseconds."""
    for _ in range(warmup):
        call()
    synchronize()
    times = []
    for _ in range(runs):
        if torch.cuda.is_available():
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            call()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last))
        else:
            started = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - started))
    times.sort()
    return statistics.median(times), times[(3 * runs) // 4] - times[runs // 4]


def measure(call: Callable[[], object], *, runs: int = 20) -> Measured:
    """Return time, and the memory allocated on top of what was there before."""
    milliseconds, spread = median_ms(call, warmup=min(3, runs), runs=runs)
    if not torch.cuda.is_available():
        return Measured(milliseconds, spread, 0)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    synchronize()
    return Measured(milliseconds, spread, torch.cuda.max_memory_allocated() - before)


def host_and_device_ms(call: Callable[[], object], *, warmup: int, runs: int) -> Measured:
    """Return medians of a whole call and of the host's part of it: until the call returns."""
    for _ in range(warmup):
        call()
    whole, host = [], []
    for _ in range(runs):
        synchronize()
        started = time.perf_counter()
        call()
        host.append(1e3 * (time.perf_counter() - started))
        synchronize()
        whole.append(1e3 * (time.perf_counter() - started))
    whole.sort()
    spread = whole[(3 * runs) // 4] - whole[runs // 4]
    return Measured(statistics.median(whole), spread, 0, statistics.median(host))


class Alive(TorchDispatchMode):
    """Bytes of the storages made inside and not yet freed, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.follow(tensor.untyped_storage())
        return out

    def follow(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.gone, key, size)

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def keep_memory(kept: bool) -> None:
    """Let glibc keep what is freed, as a GPU's allocator does, or give it back at once.

    Asking the system for the same 100 MiB in every step takes as long as computing with them.
    """
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # of mallopt
    libc.mallopt(mmap_max, 0 if kept else 65_536)
    libc.mallopt(mmap_threshold, 2**17)
    libc.mallopt(trim_threshold, 2**31 - 1 if kept else 2**17)
    if not kept:
        libc.malloc_trim(0)


def resident(name: str) -> int:
    """Return a line of this process's status in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def kernel_times(call: Callable[[], object], most: int = 30) -> Iterator[dict[str, object]]:
    """Yield the kernels of one call that take the longest on the device, by profiler."""
    if not torch.cuda.is_available():
        return
    from torch.profiler import ProfilerActivity, profile

    call()
    synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        synchronize()
    found = sorted(profiled.key_averages(), key=lambda entry: -entry.device_time_total)
    for entry in found[:most]:
        us = round(entry.device_time_total)
        yield {"kernel": entry.key[:80], "calls": entry.count, "microseconds": us}


def attended_pairs(length: int, window: int | None, document: int | None = None) -> int:
    """Return how many (query, key) pairs see each other, causal.

    Args:
        length: Tokens of the row.
        window: Keys that a query sees at most, itself among them; None for all.
        document: Tokens of each packed document, the last one shorter; None for one document.
    """
    document = document or length
    lengths = [document] * (length // document) + [length % document]
    pairs = 0
    for tokens in lengths:
        seen = tokens if window is None else min(window, tokens)
        pairs += tokens * seen - seen * (seen - 1) // 2
    return pairs


def failure(error: Exception) -> str:
    """Return an error as the one line that a table has room for, and let the next one start."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    first = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[0][:200]}"


def proof_failed(error: Exception) -> bool:
    """Return whether an engine of another library refused itself: its proof failed here."""
    return isinstance(error, ValueError) and "failed its proof" in str(error)


def no_figure(name: str, error: Exception) -> dict[str, object]:
    """Return the fields of a candidate that raised: one of ours is wrong, unless memory lacked."""
    fields: dict[str, object] = {"not_run": failure(error)}
    explained = isinstance(error, torch.OutOfMemoryError) or proof_failed(error)
    if name.startswith("ours") and not explained:
        fields["right"] = False
    return fields


def matmul_peak(size: int = 8192) -> float:
    """Return the operations per second of a large bf16 product of random numbers."""
    size = size if torch.cuda.is_available() else 256
    left, right = (torch.randn((size, size), device=device_of()).bfloat16() for _ in range(2))
    return 2 * size**3 / (1e-3 * median_ms(lambda: left @ right)[0])


def copy_peak(size: int = 2**30) -> float:
    """Return the bytes per second of a large copy, read plus written."""
    size = size if torch.cuda.is_available() else 2**20
    source = torch.empty(size, dtype=torch.uint8, device=device_of()).random_(256)
    target = torch.empty_like(source)
    return 2 * size / (1e-3 * median_ms(lambda: target.copy_(source))[0])


def environment() -> str:
    """Return one line: date, GPU, driver, torch, triton and commit."""
    name, driver = platform.processor() or "CPU", "no GPU"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        driver = "driver " + _output(query)
    commit = _output(["git", "rev-parse", "--short", "HEAD"])
    today = time.strftime("%Y-%m-%d")
    return (
        f"{today}, {name}, {driver}, torch {torch.__version__}, triton {triton.__version__}, "
        f"commit {commit}"
    )


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"
