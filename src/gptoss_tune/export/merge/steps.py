"""What a merge will write, decided before the first byte: one step per weight.

Whatever is no MXFP4 code is bf16 in the result, as in the release: servers of MXFP4 expect it so,
and a file called bf16 that holds F32 is twice its size. A base in another dtype is rounded once.

A step either copies bytes (``copy``), adds a low-rank change to a dense tensor (``add``; nothing is
added where only the dtype changes), decodes
an MXFP4 stack into transformers' dense layout (``unpack``), or encodes a stack as MXFP4 (``pack``).
From the steps follow all names, dtypes, shapes and therefore the exact bytes of every header, which
is what makes a merge both streaming and resumable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from gptoss_tune.errors import CheckpointError
from gptoss_tune.run.record import trained_merge_aware
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter import Adapter, LowRank
from gptoss_tune.weights.config import QUANTIZATION_CONFIG
from gptoss_tune.weights.names import (
    EXPERT_PROJECTIONS,
    MXFP4_BLOCK,
    ExpertFormat,
    expert_key,
    expert_shape,
)
from gptoss_tune.weights.safetensors_file import TensorSpec


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter and its coefficient in the sum that is merged."""

    adapter: Adapter
    weight: float = 1.0


@dataclass(frozen=True)
class Step:
    """One weight to write.

    Attributes:
        kind: What is done.
        source: The base tensor; for MXFP4 experts the common part before ``_blocks``, ``_scales``.
        outputs: What is written: one tensor, or blocks and scales for ``pack``.
        module: The adapters' name of the weight when at least one changes it, else None.
    """

    kind: Literal["copy", "add", "unpack", "pack"]
    source: str
    outputs: tuple[TensorSpec, ...]
    module: str | None = None


def is_merge_aware(base: Checkpoint, adapters: Sequence[WeightedAdapter]) -> bool:
    """Return whether the rounded weights themselves were trained: one such adapter, alone."""
    alone = len(adapters) == 1 and adapters[0].weight == 1.0
    return alone and base.expert_format == "mxfp4" and trained_merge_aware(adapters[0].adapter.path)


def plan_steps(
    base: Checkpoint, adapters: Sequence[WeightedAdapter], expert_format: ExpertFormat
) -> list[Step]:
    """Return the steps that turn ``base`` with ``adapters`` into a checkpoint in that format.

    Without adapters they convert the base.
    """
    changed = {module for each in adapters for module in each.adapter.targets}
    steps = []
    stored_as_experts = set()
    for layer in range(base.config["num_hidden_layers"]):
        for projection in EXPERT_PROJECTIONS:
            key = expert_key(layer, projection)
            names = [f"{key}_blocks", f"{key}_scales"] if base.expert_format == "mxfp4" else [key]
            stored_as_experts.update(names)
            shape = expert_shape(base.config, projection)
            steps += _expert_steps(base, names, key, shape, key in changed, expert_format)
    for name in base.names():
        if name in stored_as_experts:
            continue
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module in changed:
            steps.append(Step("add", name, (_in_bf16(base.spec(name)),), module))
        else:
            steps.append(_unchanged(base, name))
    reached = {step.module for step in steps if step.module}
    assert reached == changed, f"targets that no step merges: {sorted(changed - reached)}"
    return steps


def _expert_steps(
    base: Checkpoint,
    names: list[str],
    key: str,
    shape: tuple[int, int, int],
    changed: bool,
    expert_format: ExpertFormat,
) -> Iterable[Step]:
    """Yield the steps of one expert stack ``[E, in, out]``."""
    experts, into, out = shape
    module = key if changed else None
    if expert_format == base.expert_format and not changed:
        for name in names:
            yield _unchanged(base, name)
    elif expert_format == "mxfp4":
        if into % MXFP4_BLOCK:
            raise CheckpointError(f"{key}: {into} inputs; MXFP4 needs a multiple of {MXFP4_BLOCK}")
        groups = (experts, out, into // MXFP4_BLOCK)
        blocks = TensorSpec(f"{key}_blocks", torch.uint8, (*groups, MXFP4_BLOCK // 2))
        scales = TensorSpec(f"{key}_scales", torch.uint8, groups)
        yield Step("pack", key, (blocks, scales), module)
    elif base.expert_format == "mxfp4":
        yield Step("unpack", key, (TensorSpec(key, torch.bfloat16, shape),), module)
    else:
        yield Step("add", key, (_in_bf16(base.spec(key)),), module)


def _in_bf16(spec: TensorSpec) -> TensorSpec:
    """Return what is written of a tensor: bf16 of a floating one, codes as they are."""
    return replace(spec, dtype=torch.bfloat16) if spec.dtype.is_floating_point else spec


def _unchanged(base: Checkpoint, name: str) -> Step:
    """Return the step of a tensor that no adapter changes."""
    spec = base.spec(name)
    written = _in_bf16(spec)
    as_it_is = written == spec and base.is_stored(name)
    return Step("copy" if as_it_is else "add", name, (written,))


def merged_config(base: Checkpoint, expert_format: ExpertFormat) -> dict[str, Any]:
    """Return ``config.json`` of the result.

    Servers pick their loader by ``quantization_config``: a dense checkpoint that keeps it is read
    as MXFP4 and fails, or worse.
    """
    config = dict(base.config)
    if expert_format == "mxfp4":
        config.setdefault("quantization_config", QUANTIZATION_CONFIG)
    else:
        config.pop("quantization_config", None)
        if "dtype" not in config:
            config["torch_dtype"] = "bfloat16"
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = "bfloat16"
    return config


def low_ranks(adapters: Sequence[WeightedAdapter], module: str) -> list[LowRank]:
    """Return the changes of one weight, one for each adapter that targets it."""
    return [
        each.adapter.read(module, each.weight)
        for each in adapters
        if module in each.adapter.targets
    ]
