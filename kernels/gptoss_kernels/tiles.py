"""Tile sizes: plain functions of shape, dtype and GPU, with a table behind them.

The defaults are those that compile without spills, with loops that run ahead and with wide
accesses for every supported architecture (see ``bench/compile_report.py``); ``bench/tune.py``
measures on a GPU and writes ``tuned/<gpu>.json``, which then wins. Rejected: ``triton.autotune``,
whose search runs inside somebody's first step and may choose differently from run to run.
"""

# Legend: M rows, N columns out, K columns in, R rank.

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gptoss_kernels.backend import interpreted, launched_on

Product = Literal["store", "swiglu", "given", "packed", "packed_swiglu", "skinny"]

_TUNED = Path(__file__).parent / "tuned"


@dataclass(frozen=True)
class Tiles:
    """How a product is cut.

    Attributes:
        block_m: Rows of a tile.
        block_n: Columns of a tile.
        block_k: Columns of the inner dimension per step.
        warps: Warps of a program.
        stages: Steps of the inner loop in flight.
        group: Row tiles that are walked before the next column tile.
        programs: Programs of these tiles that a processor holds at a time; the persistent grid is
            this many times the processors, so that one waits for memory while another multiplies.
        tma: Copy the matrix, and rows that are not gathered, by TMA descriptors (sm_90, sm_100):
            40 to 60 registers less. Not yet timed, so only a measured table asks for it.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    group: int = 8
    programs: int = 1
    tma: bool = False


@dataclass(frozen=True)
class Gpu:
    """What the choice depends on.

    Attributes:
        name: A file name, like ``nvidia-h200``; ``interpreter`` on a CPU.
        architecture: ``sm_90``, ``gfx942``, ``interpreter``.
        processors: Streaming multiprocessors (compute units), the programs of a persistent grid.
    """

    name: str
    architecture: str
    processors: int


@functools.cache
def gpu_of(device: torch.device) -> Gpu:
    """Return the ``Gpu`` behind a device."""
    if device.type == "meta" and not launched_on(device):
        return Gpu("shapes", "sm_90", 132)  # under ``shapes_only``, where tiles are of no account
    if device.type == "cpu" and interpreted():
        # Fewer programs than tiles, so that tests walk the persistent loop.
        return Gpu("interpreter", "interpreter", 3)
    if device.type != "cuda" and launched_on(device):
        return _stand_in()
    properties = torch.cuda.get_device_properties(device)
    name = re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    architecture = (
        properties.gcnArchName.split(":")[0]
        if torch.version.hip
        else f"sm_{properties.major}{properties.minor}"
    )
    return Gpu(name, architecture, properties.multi_processor_count)


def _stand_in() -> Gpu:
    """Return what the active driver says of a GPU that is not here."""
    from triton.runtime import driver

    active: Any = driver.active
    target = active.get_current_target()
    properties = active.utils.get_device_properties(active.get_current_device())
    architecture = f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)
    return Gpu(properties["name"], architecture, properties["multiprocessor_count"])


_WIDE = {
    # architecture: (store, swiglu), half precision
    "sm_80": (Tiles(128, 128, 64, 8, 3), Tiles(128, 128, 64, 8, 3)),
    "sm_90": (Tiles(128, 256, 64, 8, 3), Tiles(256, 128, 64, 8, 3)),
    "sm_100": (Tiles(128, 256, 64, 8, 3), Tiles(128, 128, 64, 8, 4)),
    "sm_120": (Tiles(128, 128, 64, 8, 3), Tiles(128, 128, 64, 8, 3)),
    "gfx": (Tiles(128, 128, 32, 8, 2), Tiles(128, 128, 32, 8, 2)),
    "interpreter": (Tiles(16, 64, 64, 4, 1, group=2), Tiles(16, 64, 64, 4, 1, group=2)),
}
_SHARED_KIB = {"sm_80": 164, "sm_90": 228, "sm_100": 228, "sm_120": 100, "gfx": 64}
"""Shared memory of a processor, for all its programs."""
_SHARED_REGISTERS = {
    # padded rank: rows, columns, warps of ``ragged_outer``
    16: (32, 64, 4),
    32: (64, 64, 8),
    64: (64, 128, 8),
    128: (64, 128, 8),
    256: (64, 64, 8),
}
_SAME_FAMILY = {"sm_86": "sm_120", "sm_89": "sm_120", "sm_103": "sm_100", "sm_121": "sm_120"}
_FLOAT32 = Tiles(64, 64, 32, 4, 2)
_FLOAT32_LARGE_RANK = Tiles(32, 32, 32, 4, 2)
_MIDDLE_RANK = Tiles(128, 128, 64, 8, 3)
_LARGE_RANK = Tiles(64, 64, 64, 4, 3)


def choose_tiles(
    product: Product,
    *,
    n: int,
    k: int,
    dtype: torch.dtype,
    gpu: Gpu,
    rank: int = 0,
    rows_per_expert: int = 0,
    turned: bool = False,
    bias: bool = False,
) -> Tiles:
    """Return the tiles of a grouped product: the measured ones where there are any.

    Args:
        product: "store" and "swiglu" by their epilogue; "packed" and "packed_swiglu" decode in the
            loop; "given" adds to a product made elsewhere; "skinny" has N = rank.
        n: N.
        k: K.
        dtype: Of the activations.
        gpu: From ``gpu_of``.
        rank: R of the low-rank term, 0 without one.
        rows_per_expert: M / E: a tall tile wastes half its rows on each expert's last tile.
        turned: The matrix has N contiguous in memory instead of K.
        bias: A bias is added.

    Returns:
        The tiles.
    """
    key = (product, n, k, turned, str(dtype).removeprefix("torch."))
    # A larger rank holds more of a tile's registers and shared memory than was measured; the rank
    # of a skinny product is its N.
    needed = 0 if product == "skinny" else _power_of_two(max(rank, 16))
    for measured, tuned in _tuned_entries(gpu.name).get(key, ()):
        if needed <= measured:
            return tuned
    if gpu.architecture == "interpreter":
        store, swiglu = _WIDE["interpreter"]
        return swiglu if product.endswith("swiglu") else store
    if product == "skinny":
        return _skinny_tiles(n, dtype, _family(gpu.architecture))
    if product.startswith("packed"):
        # 64 divides 2,880, so that packed bytes are read in whole copies of 16 bytes.
        return Tiles(16, 64, 64, 4, 4, programs=5)
    if product == "given":
        return Tiles(64, 64, 32, 4, 1, programs=4)
    # The first step of a tile reads [M, R] and [R, N] at once: a larger rank takes smaller tiles.
    if dtype == torch.float32:
        return _FLOAT32 if rank <= 64 else _FLOAT32_LARGE_RANK
    if rank > 64:
        return _LARGE_RANK
    if rank > 32:
        return _MIDDLE_RANK
    family = _family(gpu.architecture)
    store, swiglu = _WIDE[family]
    # The wide tile spills where both the rank-r term and the bias start the accumulator: on
    # Blackwell, where it lives in a memory of its own, and under Triton 3.9 with N contiguous.
    started = bias and rank > 0
    narrow = product == "swiglu" or (started and (turned or family == "sm_100"))
    tiles = swiglu if narrow else store
    # With N contiguous the tall tile spills a few bytes under Triton 3.9.
    if tiles.block_m > 128 and (turned or rows_per_expert < 4 * tiles.block_m):
        return replace(tiles, block_m=128)
    return tiles


def _skinny_tiles(n: int, dtype: torch.dtype, family: str) -> Tiles:
    """Return the tiles of ``rows A^T``: it waits for memory, so as many programs as fit."""
    wide, large = dtype == torch.float32, 256 if dtype != torch.float32 else 128
    width = min(large, max(16, _power_of_two(n)))
    stages = 2 if wide or family == "gfx" else 3
    warps = 8 if width == 256 else 4
    tiles = Tiles(64, width, 32 if wide else 64, warps, stages)
    # By registers; a program's shared memory is its stages and 1 KiB more.
    most = 6 if width <= 32 else 4 if width <= 64 else 2
    shared = (tiles.block_m + width) * tiles.block_k * dtype.itemsize * stages + 1024
    fitting = min(most, (_SHARED_KIB[family] << 10) // shared)
    return replace(tiles, programs=max(1, fitting // 2 if wide else fitting))


def choose_outer_tiles(rank: int, dtype: torch.dtype, gpu: Gpu) -> Tiles:
    """Return the tiles of ``ragged_outer``: rows a step, columns of the wide side, padded rank.

    Args:
        rank: R, at most 256.
        dtype: Of both sides.
        gpu: From ``gpu_of``.

    Returns:
        The tiles; ``block_m`` counts rows, ``block_n`` wide columns, ``block_k`` is R padded.
    """
    padded = max(16, _power_of_two(rank))
    if dtype == torch.float32:
        return Tiles(32, 128 if padded <= 64 else 64, padded, 8 if padded > 64 else 4, 2)
    # Where accumulators and addresses share the registers, other tiles spill by version of Triton.
    if _family(gpu.architecture) in ("sm_80", "sm_120"):
        rows, columns, warps = _SHARED_REGISTERS[padded]
    else:
        rows, columns, warps = 64, 128 if padded <= 64 else 64, 8 if padded > 128 else 4
    return Tiles(rows, columns, padded, warps, 3)


def _family(architecture: str) -> str:
    if architecture.startswith("gfx"):
        return "gfx"
    return architecture if architecture in _WIDE else _SAME_FAMILY.get(architecture, "sm_80")


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


@functools.cache
def _tuned_file(name: str) -> dict[str, Any]:
    """Return the measured table of a GPU, empty where none was measured."""
    file = _TUNED / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@functools.cache
def _tuned_entries(
    name: str,
) -> dict[tuple[str, int, int, bool, str], list[tuple[int, Tiles]]]:
    """Return measured tiles with the padded ranks they were measured at, the smallest first."""
    found: dict[tuple[str, int, int, bool, str], list[tuple[int, Tiles]]] = {}
    for entry in _tuned_file(name).get("tiles", []):
        key = (entry["product"], entry["n"], entry["k"], entry["turned"], entry["dtype"])
        rank = _power_of_two(max(entry.get("rank", 16), 16))
        found.setdefault(key, []).append((rank, Tiles(**entry["tiles"])))
    for measured in found.values():
        measured.sort(key=lambda one: one[0])
    return found
