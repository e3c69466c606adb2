"""What a merge writes, step by step and a few rows at a time, whatever file it is written to.

Legend: E experts; ``in`` and ``out`` of a projection.

Every container asks here for its values, so that a GGUF and a safetensors folder of one merge hold
the same ones. A step is produced in the order of its first axis: rows of a matrix, experts of a
stack. Nothing here holds more than one expert, or as many rows as fit in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from gptoss_kernels import dequantize
from torch import Tensor

from gptoss_tune.export.merge.arithmetic import added, chunks, unpacked
from gptoss_tune.export.merge.changes import changed_base
from gptoss_tune.export.merge.quantize import ScaleRule, Survival, packed
from gptoss_tune.export.merge.steps import Step, WeightedAdapter, is_merge_aware, low_ranks
from gptoss_tune.weights import Checkpoint


@dataclass(frozen=True)
class Producer:
    """The tensors of a merge.

    Attributes:
        base: What the adapters were trained on.
        adapters: What is added to them.
        device: Where the arithmetic runs.
    """

    base: Checkpoint
    adapters: Sequence[WeightedAdapter]
    device: torch.device

    @cached_property
    def source(self) -> Checkpoint:
        """The base with the tensors that the adapters replace: what every value is read from."""
        return changed_base(self.base, self.adapters)

    @cached_property
    def scale_rule(self) -> ScaleRule:
        """Rounded weights that were trained are written as they were; others get the best scale."""
        return "ocp" if is_merge_aware(self.base, self.adapters) else "search"

    def measures(self, step: Step) -> bool:
        """Return whether it is told how much of the change of ``step`` survives."""
        return step.module is not None and self._quantizes(step)

    def prefetch(self, step: Step) -> None:
        """Let the kernel read the sources of ``step`` ahead of their use."""
        for name in (f"{step.source}{suffix}" for suffix in ("", "_blocks", "_scales")):
            if self.source.has(name):
                self.source.prefetch(name)

    def tensors(self, step: Step, survival: Survival) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Yield ``(first row, rows of each output of the step)``, on the CPU, without a gap.

        Args:
            step: One of ``plan_steps``.
            survival: Receives the sums of every expert where the step is measured.
        """
        if step.kind == "copy":
            for start, stop in chunks(step.outputs[0]):
                yield start, tuple(self.source.read_rows(o.name, start, stop) for o in step.outputs)
        elif self._quantizes(step):
            yield from self._experts(step, survival)
        else:
            changes = low_ranks(self.adapters, step.module) if step.module else []
            compute = added if step.kind == "add" else unpacked
            for start, rows in compute(self.source, step.outputs[0], changes, self.device):
                yield start, (rows,)

    def _experts(self, step: Step, survival: Survival) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Yield the experts of a stack that was rounded to MXFP4, in the layout of its outputs."""
        stacks = packed(
            self.source,
            step.source,
            low_ranks(self.adapters, step.module) if step.module else [],
            scale_rule=self.scale_rule,
            survival=survival,
            device=self.device,
        )
        for expert, stack in stacks:
            if step.kind == "pack":
                yield expert, (stack.blocks.unsqueeze(0), stack.scales.unsqueeze(0))
            else:  # what merge-aware training used: the rounded weights, exact in bf16
                dense = dequantize(stack.blocks, stack.scales, dtype=step.outputs[0].dtype)
                yield expert, (dense.T.contiguous().unsqueeze(0),)

    def _quantizes(self, step: Step) -> bool:
        """Return whether the values of ``step`` are those of MXFP4 codes, computed here."""
        trained = self.scale_rule == "ocp" and step.module is not None
        return step.kind == "pack" or (
            step.kind != "copy" and trained and len(step.outputs[0].shape) == 3
        )
