"""Verification of merged weights against base and adapter, from files, one expert at a time.

The change is computed here from the adapter's tensors as PEFT documents them, in one line, and by
none of the code that merges: a wrong transpose there is not repeated here. Whether it is in the
file is asked in three ways that fail differently:

* element by element, or block by block for MXFP4, the file is as near to ``W + d`` as rounding to
  its own dtype can bring it;
* the share ``<M - W, d> / <d, d>`` of the change that the file M holds is the share that correct
  rounding would hold: bf16 and MXFP4 may lose a small change, but a dropped one is seen here even
  where it is smaller than a rounding step;
* ``(M - W) x`` is ``s B (A x)`` for a random x: the probe for transposed or permuted factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from gptoss_kernels import ExpertProjection, Mxfp4Weight, dequantize, quantize_reference
from gptoss_kernels.experts.projection import merged_mxfp4_expert
from torch import Tensor

from gptoss_tune.export.merge.arithmetic import chunks, decoded
from gptoss_tune.export.merge.steps import WeightedAdapter
from gptoss_tune.export.verify.raw_changes import raw_change
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter import LowRank
from gptoss_tune.weights.names import MXFP4_BLOCK, layer_of

_ROUNDING_TOLERANCE = 1.01  # half a step, and the last bits of two sums in fp32
_FP32_SUM = 2.0**-20  # relative: the order of a sum over the rank in fp32 is free
_SHARE_TOLERANCE = 0.05  # measured 0.000 for our merges, 0.02 for PEFT's bf16 + bf16
_BLOCK_TOLERANCE = 1.01


@dataclass
class TargetReport:
    """What the file holds of one weight's change.

    Attributes:
        module: The adapters' name of the weight.
        delta_norm: |d|.
        held: ``<M - W, d> / <d, d>`` over all experts.
        holdable: The same for correctly rounded weights.
        probe: ``<(M - W) x, s B (A x)> / <s B (A x), s B (A x)>``; near ``held`` in a right file.
        faults: What is wrong, one short sentence for each expert or tensor; empty in a right file.
    """

    module: str
    delta_norm: float = 0.0
    held: float = 0.0
    holdable: float = 0.0
    probe: float = 0.0
    faults: list[str] = field(default_factory=list)


def inspect_target(
    base: Checkpoint,
    merged: Checkpoint,
    adapters: Sequence[WeightedAdapter],
    module: str,
    *,
    merge_aware: bool,
    device: torch.device,
) -> TargetReport:
    """Return what ``merged`` holds of the change of one weight.

    Args:
        base: What was merged into.
        merged: The file in question.
        adapters: What was merged.
        module: A target of at least one adapter.
        merge_aware: The rounded weights were trained: the file must hold exactly those.
        device: Where to compute.
    """
    mine = [each for each in adapters if module in each.adapter.targets]
    experts = mine[0].adapter.targets[module].experts
    report = TargetReport(module)
    sums = _Sums()
    generator = torch.Generator().manual_seed(0)
    factors = [raw_change(each, module, device) for each in mine]
    trained_change = mine[0].adapter.read(module) if merge_aware and experts is not None else None
    for expert in range(experts or 1):
        weight = _matrix(base, module, expert, experts, device)
        found = _matrix(merged, module, expert, experts, device)
        change = torch.zeros_like(weight)
        probe = torch.randn(weight.shape[1], generator=generator).to(device)
        expected_probe = torch.zeros(weight.shape[0], device=device)
        changing = [raw for raw in factors if raw.holds(expert)]
        for raw in changing:
            raw.add_to(change, weight, expert)
            expected_probe += raw.acts(probe, weight, expert)
        where = module if experts is None else f"{module} expert {expert}"
        if not changing:
            if not _is_the_bases(base, merged, module, weight, found):
                report.faults.append(f"{where}: differs from the base, and no factors change it")
            continue
        if trained_change is not None:
            rounded = _trained_expert(base, trained_change, module, expert).to(device)
            _compare_with_training(report, where, found, rounded)
        else:
            rounded = _rounded(weight + change, merged, module, experts)
            stored = _stored_dtype(merged, module, experts)
            _compare_with_rounding(report, where, found, weight, change, rounded, stored)
        sums.add(change, found - weight, rounded - weight, expected_probe, probe)
    sums.fill(report)
    if report.delta_norm == 0:
        report.faults.append(f"{module}: the adapter's change is zero; nothing was trained there")
    return report


def _matrix(
    checkpoint: Checkpoint, module: str, expert: int, experts: int | None, device: torch.device
) -> Tensor:
    """Return ``[out, in]`` fp32 of one expert, or of a linear layer."""
    if experts is None:
        return checkpoint.read(f"{module}.weight").to(device).float()
    return decoded(checkpoint, module, expert, expert + 1, device)[0]


def _trained_expert(base: Checkpoint, change: LowRank, module: str, expert: int) -> Tensor:
    """Return the rounded expert ``[out, in]`` as merge-aware training computed it."""
    packed = Mxfp4Weight(
        base.read_rows(f"{module}_blocks", expert, expert + 1),
        base.read_rows(f"{module}_scales", expert, expert + 1),
    )
    one = slice(expert, expert + 1)
    projection = ExpertProjection(packed, None, change.A[one], change.B[one], change.scaling)
    return merged_mxfp4_expert(projection, 0)


def _stored_dtype(
    merged: Checkpoint, module: str, experts: int | None
) -> torch.dtype | Literal["mxfp4"]:
    """Return what the values of a weight are stored in."""
    if experts is None:
        return merged.dtype(f"{module}.weight")
    return "mxfp4" if merged.expert_format == "mxfp4" else merged.dtype(module)


def _rounded(wanted: Tensor, merged: Checkpoint, module: str, experts: int | None) -> Tensor:
    """Return ``wanted`` as the merged file can hold it."""
    stored = _stored_dtype(merged, module, experts)
    if stored == "mxfp4":
        coded = quantize_reference(wanted)
        return dequantize(coded.blocks, coded.scales, dtype=torch.float32)
    return wanted.to(stored).float()


def _is_the_bases(
    base: Checkpoint, merged: Checkpoint, module: str, weight: Tensor, found: Tensor
) -> bool:
    """Return whether an expert without factors is the base's, as far as its file can hold it."""
    if merged.expert_format == base.expert_format == "mxfp4":
        return torch.equal(found, weight)
    rounded = _rounded(weight, merged, module, 1)
    if merged.expert_format == "bf16":
        return torch.equal(found, rounded)
    allowed = _block_errors(rounded - weight) * _BLOCK_TOLERANCE
    return not (_block_errors(found - weight) > allowed + 1e-6 * _block_errors(weight)).any()


def _compare_with_training(
    report: TargetReport, where: str, found: Tensor, trained: Tensor
) -> None:
    different = int((found != trained).sum())
    if different:
        report.faults.append(
            f"{where}: {different} of {found.numel()} weights differ from those of training"
        )


def _compare_with_rounding(
    report: TargetReport,
    where: str,
    found: Tensor,
    weight: Tensor,
    change: Tensor,
    rounded: Tensor,
    stored: torch.dtype | Literal["mxfp4"],
) -> None:
    """Add a fault where ``found`` is farther from ``weight + change`` than rounding explains."""
    wanted = weight + change
    if stored == "mxfp4":
        error = _block_errors(found - wanted)
        allowed = _block_errors(rounded - wanted) * _BLOCK_TOLERANCE
        # Not <=, so that NaN is far.
        far = int((~(error <= allowed + 1e-6 * _block_errors(wanted))).sum())
        unit = f"of {error.numel()} blocks"
    else:
        far = int((~((found - wanted).abs() <= _half_steps(weight, change, stored))).sum())
        unit = f"of {found.numel()} weights"
        squared = change.double().square().sum()
        held = ((found - rounded).double() * change.double()).sum() / squared.clamp(min=1e-30)
        if squared > 0 and held.abs() > _SHARE_TOLERANCE:
            report.faults.append(
                f"{where}: holds {held:+.0%} of the change more or less than "
                f"{str(stored).removeprefix('torch.')} could"
            )
    if far:
        report.faults.append(f"{where}: {far} {unit} are not base + change")


def _half_steps(weight: Tensor, change: Tensor, stored: torch.dtype) -> Tensor:
    """Return how far rounding may leave ``W + d`` in a dtype that is added to in its own steps.

    Half a step of the sum and, for programs that round the change before they add it, half a step
    of the change: relative to each, and below the smallest normal number of the dtype absolute.
    fp16 has its smallest normal at 6e-5, where the elements of small weights lie.
    """
    about = torch.finfo(stored)
    relative = about.eps / 2 * _ROUNDING_TOLERANCE + _FP32_SUM
    subnormal = about.tiny * about.eps  # a half step of the sum, and one of the change
    return (
        relative * ((weight + change).abs() + change.abs()) + _FP32_SUM * weight.abs() + subnormal
    )


def _block_errors(difference: Tensor) -> Tensor:
    return difference.square().unflatten(-1, (-1, MXFP4_BLOCK)).sum(-1)


class _Sums:
    """Inner products over all experts of a target, in double."""

    def __init__(self) -> None:
        self.squared = self.held = self.holdable = self.probe_squared = self.probe = 0.0

    def add(
        self, change: Tensor, held: Tensor, holdable: Tensor, expected: Tensor, probe: Tensor
    ) -> None:
        wide = change.double()
        self.squared += wide.square().sum().item()
        self.held += (held.double() * wide).sum().item()
        self.holdable += (holdable.double() * wide).sum().item()
        self.probe_squared += expected.double().square().sum().item()
        self.probe += ((held @ probe).double() * expected.double()).sum().item()

    def fill(self, report: TargetReport) -> None:
        report.delta_norm = self.squared**0.5
        if self.squared > 0:
            report.held, report.holdable = self.held / self.squared, self.holdable / self.squared
        if self.probe_squared > 0:
            report.probe = self.probe / self.probe_squared


def inspect_untouched(base: Checkpoint, merged: Checkpoint, targets: set[str]) -> list[str]:
    """Return faults of the tensors that no adapter targets: they must be the base's, exactly.

    ``targets`` are modules, or whole tensors.
    """
    faults = []
    for name in merged.names():
        stack = name.removesuffix("_blocks").removesuffix("_scales")
        if targets & {name, stack, name.removesuffix(".weight")}:
            continue
        if base.has(name):
            if not _equal_bytes(base, merged, name):
                faults.append(f"{name}: differs from the base, and no adapter targets it")
        elif name != f"{stack}_scales" and not _equal_stacks(base, merged, stack):
            faults.append(f"{stack}: differs from the base's values, and no adapter targets it")
    return faults


def _equal_bytes(base: Checkpoint, merged: Checkpoint, name: str) -> bool:
    """Return whether a tensor has the base's bytes, or its values rounded to another dtype."""
    spec, before = merged.spec(name), base.spec(name)
    converted = spec.dtype.is_floating_point and before.dtype.is_floating_point
    if spec.shape != before.shape or not (converted or spec.dtype == before.dtype):
        return False
    return all(
        torch.equal(
            base.read_rows(name, start, stop).to(spec.dtype).view(torch.uint8),
            merged.read_rows(name, start, stop).view(torch.uint8),
        )
        for start, stop in chunks(spec)
    )


def _equal_stacks(base: Checkpoint, merged: Checkpoint, stack: str) -> bool:
    """Return whether a stack that changed its format has the base's values, as far as it can."""
    cpu = torch.device("cpu")
    for expert in range(merged.config["num_local_experts"]):
        weight = decoded(base, stack, expert, expert + 1, cpu)[0]
        found = decoded(merged, stack, expert, expert + 1, cpu)[0]
        if not _is_the_bases(base, merged, stack, weight, found):
            return False
    return True


def find_nonfinite(checkpoint: Checkpoint) -> list[str]:
    """Return the names of tensors with NaN or infinity; an E8M0 scale of 255 is NaN."""
    bad = []
    for name in checkpoint.names():
        spec = checkpoint.spec(name)
        for start, stop in chunks(spec):
            part = checkpoint.read_rows(name, start, stop)
            broken = part == 255 if name.endswith("_scales") else ~torch.isfinite(part.float())
            if not name.endswith("_blocks") and broken.any():
                layer = layer_of(name)
                bad.append(f"{name} (layer {layer})" if layer is not None else name)
                break
    return bad
