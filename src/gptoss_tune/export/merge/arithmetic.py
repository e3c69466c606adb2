"""The arithmetic of a merge: fp32, rounded once, a few experts or rows at a time.

Legend: E experts, H hidden, I intermediate; ``in`` and ``out`` of a projection. Released experts
lie as ``[E, out, in]``, transformers' dense ones as ``[E, in, out]``.

Attention and dense experts add ``scaling * B @ A`` as a matrix product; DoRA then brings the rows
of a linear weight to their lengths. Experts that go to MXFP4
use ``merged_expert_reference`` of the kernels instead, whose fixed order of sums is the one that
merge-aware training rounds: the exported bytes are then the weights that were trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from gptoss_kernels import dequantize, merged_expert_reference
from torch import Tensor

from gptoss_tune.errors import CheckpointError
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter import LowRank
from gptoss_tune.weights.safetensors_file import TensorSpec

_CHUNK_VALUES = 1 << 22
"""Values in flight: 16 MiB in fp32, or one expert where that is more."""


def chunks(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """Yield ranges of the first axis that hold about ``_CHUNK_VALUES`` values each."""
    total = spec.shape[0]
    rows = max(1, _CHUNK_VALUES * total // max(1, spec.nbytes // spec.dtype.itemsize))
    for start in range(0, total, rows):
        yield start, min(start + rows, total)


def added(
    base: Checkpoint, spec: TensorSpec, changes: Sequence[LowRank], device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(first row, W + sum of changes)`` of a dense tensor, rounded to its dtype once.

    A linear weight is ``[out, in]``; a dense expert stack ``[E, in, out]``.
    """
    for start, stop in chunks(spec):
        weight = base.read_rows(spec.name, start, stop).to(device).float()
        for change in changes:
            if len(spec.shape) == 2:
                weight = change.to(device).add_rows(weight, start)
            else:
                for part in _parts(change, start, stop):
                    weight[part] += _delta(change, start, part, device).transpose(1, 2)
        yield start, _finite(weight.to(spec.dtype), spec.name).cpu()


def unpacked(
    base: Checkpoint, spec: TensorSpec, changes: Sequence[LowRank], device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(first expert, decode(W) + sum of changes)`` as ``[E, in, out]`` in the new dtype."""
    for start, stop in chunks(spec):
        weight = decoded(base, spec.name, start, stop, device)
        for change in changes:
            for part in _parts(change, start, stop):
                weight[part] += _delta(change, start, part, device)
        rounded = _finite(weight.to(spec.dtype), spec.name)
        yield start, rounded.transpose(1, 2).contiguous().cpu()


def decoded(base: Checkpoint, key: str, start: int, stop: int, device: torch.device) -> Tensor:
    """Return experts ``start`` to ``stop`` of a stack as ``[E, out, in]`` fp32."""
    if base.expert_format == "bf16":
        return base.read_rows(key, start, stop).to(device).float().transpose(1, 2).contiguous()
    blocks = base.read_rows(f"{key}_blocks", start, stop).to(device)
    scales = base.read_rows(f"{key}_scales", start, stop).to(device)
    return dequantize(blocks, scales, dtype=torch.float32)


def merged_expert(weight: Tensor, changes: Sequence[LowRank], expert: int) -> Tensor:
    """Return ``weight`` ``[out, in]`` fp32 with all changes of one expert, in the fixed order."""
    for change in changes:
        if change.chosen is not None and expert not in change.chosen:
            continue
        a, b = (factor[expert].to(weight.device) for factor in (change.A, change.B))
        weight = merged_expert_reference(weight, a, b, change.scaling)
    return _finite(weight, "an expert") if changes else weight


def _finite(weight: Tensor, name: str) -> Tensor:
    """Return ``weight``, which no factor and no scaling may have carried out of its dtype.

    Raises:
        CheckpointError: It holds NaN or infinity.
    """
    if not torch.isfinite(weight).all():
        raise CheckpointError(
            f"{name}: base + change is NaN or infinite; the adapter or its weight in the sum is "
            "too large, or the base holds NaN"
        )
    return weight


def _parts(change: LowRank, start: int, stop: int) -> Iterator[slice]:
    """Yield the experts of a chunk that ``change`` has factors of, counted from its first.

    Nothing is added to the others: adding zero would change the sign of a zero.
    """
    if change.chosen is None:
        yield slice(0, stop - start)
        return
    for expert in change.chosen:
        if start <= expert < stop:
            yield slice(expert - start, expert - start + 1)


def _delta(change: LowRank, start: int, part: slice, device: torch.device) -> Tensor:
    """Return ``[experts, out, in]`` fp32 on ``device`` of ``part`` of the chunk at ``start``."""
    experts = slice(start + part.start, start + part.stop)
    a, b = change.A[experts].to(device), change.B[experts].to(device)
    return torch.matmul(b, a).mul_(change.scaling)
