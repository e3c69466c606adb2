"""Experts to MXFP4 after a change, and how much of the change four bits can hold.

A weight's neighbours in MXFP4 are far apart: most of an adapter's change is smaller than half a
step and rounds away, so that a plain merge to MXFP4 gives back the base model. Two things are done
about it. An adapter trained merge-aware was trained on the rounded weights themselves; its export
uses the same merge and the same scale rule and loses nothing. For any other adapter each block's
scale is searched for the least error, and the survival is measured and reported: the share
``<Q(W + d) - W, d> / <d, d>`` of the change d that is still there after rounding.

The rejected alternative is to report the rounding error of the weights: it is the same few percent
whether the fine-tuning survived or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from gptoss_kernels import Mxfp4Weight, dequantize, quantize_reference
from torch import Tensor

from gptoss_tune.export.merge.arithmetic import decoded, merged_expert
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter import LowRank
from gptoss_tune.weights.names import MXFP4_BLOCK, expert_shape, layer_of

ScaleRule = Literal["ocp", "search"]

_WORST = 3
_BAND_ROWS = 256


@dataclass
class Survival:
    """How much of the change of one expert stack is left in MXFP4.

    Sums over all experts; ``share`` is ``kept / squared_norm`` and ``error`` the norm of what is
    wrong over the norm of what was wanted: a change may survive in direction and still be noisy.

    Attributes:
        module: The stack.
        squared_norm: ``<d, d>`` of what was to be added.
        kept: ``<Q(W + d) - W, d>``.
        squared_error: ``|Q(W + d) - W - d|^2``.
        experts: Share of each expert that was changed at all.
    """

    module: str
    squared_norm: float = 0.0
    kept: float = 0.0
    squared_error: float = 0.0
    experts: dict[int, float] = field(default_factory=dict)

    def add(self, expert: int, change: Tensor, held: Tensor) -> None:
        """Count one expert: ``change`` was wanted, ``held`` is what the codes differ by."""
        squared = kept = 0.0
        # In double, for the sums run over sixteen million products; in bands, for the cache.
        for wanted, found in zip(change.split(_BAND_ROWS), held.split(_BAND_ROWS), strict=True):
            wide, there = wanted.double(), found.double()
            squared += wide.square().sum().item()
            kept += (wide * there).sum().item()
            self.squared_error += (there - wide).square().sum().item()
        self.squared_norm += squared
        self.kept += kept
        if squared > 0:
            self.experts[expert] = kept / squared

    @property
    def share(self) -> float:
        """The share of the change that survived; 1 when nothing was to be changed."""
        return self.kept / self.squared_norm if self.squared_norm else 1.0

    @property
    def error(self) -> float:
        """|Q(W + d) - W - d| / |d|; 0 when nothing was to be changed."""
        return (self.squared_error / self.squared_norm) ** 0.5 if self.squared_norm else 0.0

    @property
    def norm(self) -> float:
        """|d|, the Frobenius norm of the change."""
        return self.squared_norm**0.5

    def worst(self) -> list[tuple[int, float]]:
        """Return the experts that kept least, with their shares."""
        return sorted(self.experts.items(), key=lambda item: item[1])[:_WORST]

    def as_dict(self) -> dict[str, Any]:
        """Return the stack's line of a report as plain JSON values."""
        return {
            "module": self.module,
            "layer": layer_of(self.module),
            "delta_norm": self.norm,
            "survived": self.share,
            "error": self.error,
            "worst_experts": [{"expert": e, "survived": s} for e, s in self.worst()],
        }

    def state(self) -> dict[str, Any]:
        """Return all sums, for a merge that may be resumed."""
        return {**asdict(self), "experts": {str(e): s for e, s in self.experts.items()}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Survival:
        """Return what ``state`` was taken from."""
        return cls(**{**state, "experts": {int(e): s for e, s in state["experts"].items()}})


def total_share(survivals: Iterable[Survival]) -> float:
    """Return the share of the whole change of all stacks that survived."""
    survivals = list(survivals)
    squared = sum(s.squared_norm for s in survivals)
    return sum(s.kept for s in survivals) / squared if squared else 1.0


def packed(
    base: Checkpoint,
    key: str,
    changes: Sequence[LowRank],
    *,
    scale_rule: ScaleRule,
    survival: Survival,
    device: torch.device,
) -> Iterator[tuple[int, Mxfp4Weight]]:
    """Yield ``(expert, Q(W + changes))`` of a stack, expert by expert, on the CPU.

    A block that no change touches keeps the bytes of a packed base.

    Args:
        base: Where W comes from, packed or dense.
        key: The stack, ``model.layers.N.mlp.experts.gate_up_proj``.
        changes: One for each adapter that targets the stack.
        scale_rule: ``"ocp"`` as in merge-aware training, whose rounded change is then the one that
            has to survive; ``"search"`` for the least error.
        survival: Receives the sums of every expert.
        device: Where the arithmetic runs.
    """
    experts, _, _ = expert_shape(base.config, key.rpartition(".")[2])
    for expert in range(experts):
        weight = decoded(base, key, expert, expert + 1, device)[0]
        merged = merged_expert(weight, changes, expert)
        coded = _quantized(merged, scale_rule)
        blocks, scales = coded.blocks, coded.scales
        if base.expert_format == "mxfp4":
            untouched = (merged == weight).unflatten(-1, (-1, MXFP4_BLOCK)).all(-1)
            old_blocks = base.read_rows(f"{key}_blocks", expert, expert + 1)[0].to(device)
            old_scales = base.read_rows(f"{key}_scales", expert, expert + 1)[0].to(device)
            blocks = torch.where(untouched.unsqueeze(-1), old_blocks, blocks)
            scales = torch.where(untouched, old_scales, scales)
        if changes:
            if scale_rule == "ocp":  # the change that was trained is the rounded one
                merged = dequantize(coded.blocks, coded.scales, dtype=torch.float32)
            held = dequantize(blocks, scales, dtype=torch.float32).sub_(weight)
            survival.add(expert, merged.sub_(weight), held)
        yield expert, Mxfp4Weight(blocks.cpu(), scales.cpu())


def _quantized(weight: Tensor, scale_rule: ScaleRule) -> Mxfp4Weight:
    """Return ``quantize_reference`` of ``[out, in]``, in bands of rows that stay in the cache."""
    bands = [quantize_reference(b, scale_rule=scale_rule) for b in weight.split(_BAND_ROWS)]
    return Mxfp4Weight(
        torch.cat([band.blocks for band in bands]), torch.cat([band.scales for band in bands])
    )
