"""Who computes the large products of the expert layer, and what stands in the way of it.

``fused`` is our kernel on a decoded scratch, ``grouped_mm`` torch's CUTLASS product on the same
scratch, ``quack`` QuACK's with our bias, rank-r term and activation in its epilogue, ``packed``
decodes in the loop and pays for few rows. An engine of another library is used only after its proof
on this device. Rejected: timing the engines at the first step, which may choose differently from
run to run; what a GPU measured stands in ``tuned/<gpu>.json``.
"""

# Legend: M rows, E experts, N columns out, K columns in.

from __future__ import annotations

import math
from typing import Literal

import torch

from gptoss_kernels.backend import launched_on, say_once
from gptoss_kernels.experts.grouped_mm import grouped_mm_obstacle
from gptoss_kernels.experts.projection import ExpertMatrices
from gptoss_kernels.experts.quack import ProductForm, find_fault, quack_obstacle
from gptoss_kernels.mxfp4 import Mxfp4Weight
from gptoss_kernels.tiles import Gpu, _tuned_file, gpu_of

Engine = Literal["fused", "grouped_mm", "packed", "quack"]
ExpertEngine = Literal["auto", "fused", "grouped_mm", "packed", "quack"]
ENGINE_NAMES: tuple[ExpertEngine, ...] = ("auto", "fused", "grouped_mm", "packed", "quack")

PACKED_MAX_ROWS = 4096
"""Rows up to which decoding in the loop is taken: one pass over four-bit weights costs less than
writing and reading them in bf16 while an expert has about one tile of rows. Not measured yet."""

GROUPED_MM_MIN_ROWS = {"sm_90": 16384}
"""Rows from which torch's product is taken where nothing was measured: Hopper's CUTLASS kernel
copies by TMA and has warps of its own for it, which Triton's does not. 4,096 tokens at 4 experts a
token; below, its extra passes over the output weigh more. Not measured yet."""


def choose_engine(rows: int, *, packed: bool, forward: bool, gpu: Gpu) -> Engine:
    """Return the engine that suits a projection of ``rows`` rows, before any obstacle.

    Args:
        rows: M.
        packed: Whether the weight is MXFP4 and served as it is.
        forward: False for the gradient, whose inner axis is not the packed one.
        gpu: From ``gpu_of``.

    Returns:
        "packed" for few rows; for many the engine that was measured to be the fastest from some
        number of rows on, "quack" or "grouped_mm"; else "fused". Without a measurement
        "grouped_mm" on Hopper; never "quack".
    """
    limits = _tuned_file(gpu.name).get("engines")
    if limits is None:
        limits = {}
        if gpu.architecture in GROUPED_MM_MIN_ROWS:
            limits["grouped_mm_min_rows"] = GROUPED_MM_MIN_ROWS[gpu.architecture]
    if packed and forward and rows <= limits.get("packed_max_rows", PACKED_MAX_ROWS):
        return "packed"
    for engine in ("quack", "grouped_mm"):
        if rows >= limits.get(f"{engine}_min_rows", rows + 1):
            return engine
    return "fused"


def find_obstacle(engine: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why ``engine`` cannot compute here, None when nothing speaks against it.

    Args:
        engine: One of ``ENGINE_NAMES``. The first call with "grouped_mm" runs its proof on the
            device; the forms of "quack" are proved one by one, by ``engine_for``.
        device: Of the layer.
        dtype: Of its activations.
    """
    if engine == "grouped_mm":
        return grouped_mm_obstacle(device, dtype)
    if engine == "quack":
        return quack_obstacle(device, dtype)
    return None


def engine_for(
    wanted: ExpertEngine,
    matrices: ExpertMatrices,
    form: ProductForm,
    *,
    rows: int,
    device: torch.device,
    scratch_bytes: int,
) -> Engine:
    """Return the engine of one product.

    Args:
        wanted: The engine of the layer, checked by ``find_obstacle`` unless it is "auto".
        matrices: What the rows are multiplied by.
        form: What else the product does.
        rows: M.
        device: Of the rows.
        scratch_bytes: Bound of the decoded scratch; "grouped_mm" and "quack" need all experts at
            once, so "auto" takes them within it only.

    Returns:
        The engine asked for, or what suits the shape and has no obstacle. "packed" is "fused" in a
        product whose matrix is not stored packed along its inner axis.

    Raises:
        ValueError: "quack" was asked for and computes this form wrongly here.
    """
    packed = isinstance(matrices.projection.weight, Mxfp4Weight) and not matrices.merged
    usable = packed and not matrices.transposed
    if wanted == "packed":
        return "packed" if usable else "fused"
    if wanted == "quack" and (fault := find_fault(form, device, matrices.dtype)):
        raise ValueError(f'engine "quack" failed its proof: {fault}; use engine "fused"')
    if wanted != "auto":
        return wanted
    gpu = gpu_of(device)
    engine = choose_engine(rows, packed=usable, forward=not matrices.transposed, gpu=gpu)
    if engine in ("fused", "packed"):
        return engine
    obstacle = _scratch_obstacle(matrices, scratch_bytes)
    if device.type != "cuda" and launched_on(device):
        obstacle = "a driver stands in for the GPU, where nothing can be proved"
    obstacle = obstacle or find_obstacle(engine, device, matrices.dtype)
    if engine == "quack":
        obstacle = obstacle or find_fault(form, device, matrices.dtype)
    if obstacle:
        say_once(f"expert products do not take {engine}: {obstacle}")
        return "fused"
    return engine


def _scratch_obstacle(matrices: ExpertMatrices, scratch_bytes: int) -> str | None:
    """Return why all experts at once are too much, None when they fit or nothing is decoded."""
    decoded = matrices.merged or isinstance(matrices.projection.weight, Mxfp4Weight)
    needed = math.prod(matrices.projection.logical_shape) * matrices.dtype.itemsize
    if not decoded or needed <= scratch_bytes:
        return None
    return (
        f"all experts at once are {needed / 2**30:.1f} GiB of scratch, {scratch_bytes / 2**30:.1f} "
        f"are allowed; raise scratch_bytes to have it"
    )
