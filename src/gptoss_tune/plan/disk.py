"""Disk space of a run's files, counted once: for a plan, and for the check before a run.

A checkpoint holds the trained factors in fp32 and the optimizer's moments; the rest of it
(progress, random state, schedule, manifest) is small. While a checkpoint is written the older ones
are still there, and the finished adapter is written beside them all. Two formulas, one for the plan
and one for the run, were the alternative: they differed as soon as the moments had 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_tune.plan.architecture import Architecture
from gptoss_tune.plan.weights import (
    FP32_BYTES,
    adapter_factors,
    adapter_parameters,
    base_bytes,
    optimizer_bytes,
)
from gptoss_tune.recipe.schema import LoraSection, ModelSection, TrainSection

SMALL_FILES_BYTES = 2**16
"""Allowance for what a checkpoint holds beside factors and moments: 66 KB in a tiny run
after four steps, and some hundred bytes for each further line of metrics."""


@dataclass(frozen=True)
class RunFiles:
    """What one run writes into its folder, in bytes.

    Attributes:
        adapter: The finished adapter.
        checkpoint: One checkpoint: factors, moments, small files.
        checkpoints: How many there can be at a time, the one being written included.
    """

    adapter: int
    checkpoint: int
    checkpoints: int

    @property
    def total(self) -> int:
        """Free bytes that the run needs when its folder is empty."""
        return self.adapter + self.checkpoint * self.checkpoints


@dataclass(frozen=True)
class Disk:
    """Bytes on disk.

    Attributes:
        base: The checkpoint itself, which a name on the Hub is downloaded to.
        checkpoints: All that are kept, and the one being written.
        adapter: The finished adapter.
        merged_mxfp4: A merged model with its experts in MXFP4.
        merged_bf16: A merged model in bf16.
    """

    base: int
    checkpoints: int
    adapter: int
    merged_mxfp4: int
    merged_bf16: int


def run_files(architecture: Architecture, lora: LoraSection, train: TrainSection) -> RunFiles:
    """Return what a run writes into ``train.output_dir``.

    Without ``train.save_steps`` only a signal makes a checkpoint, so room for one is counted. With
    ``train.keep_best`` each evaluation may make one, and the best is kept beside the newest.
    """
    best = train.keep_best is not None
    factors = adapter_factors(architecture, lora)
    adapter = FP32_BYTES * adapter_parameters(factors)
    return RunFiles(
        adapter=adapter,
        checkpoint=adapter + optimizer_bytes(factors, train.optim) + SMALL_FILES_BYTES,
        checkpoints=(train.save_total_limit + 1 if train.save_steps or best else 1) + best,
    )


def disk(architecture: Architecture, files: RunFiles) -> Disk:
    """Return the bytes that files take: those of a run, its base, and the merged models."""
    packed, dense = _stored(architecture, "mxfp4"), _stored(architecture, "bf16")
    return Disk(
        base=packed if architecture.packed else dense,
        checkpoints=files.checkpoint * files.checkpoints,
        adapter=files.adapter,
        merged_mxfp4=packed,
        merged_bf16=dense,
    )


def _stored(architecture: Architecture, precision: str) -> int:
    section = ModelSection.model_validate(
        {"name_or_path": "base", "experts_precision": precision, "dtype": "bfloat16"}
    )
    return sum(base_bytes(architecture, section).values())
