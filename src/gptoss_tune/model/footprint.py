"""What a model holds, in which precision, and how many bytes: the line every run states.

A run that says "QLoRA" while its experts sit in bf16 needs three times the memory and looks the
same from outside; so the bytes are counted from the tensors really there, not from the recipe.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from gptoss_kernels import Mxfp4Weight
from torch import Tensor, nn

from gptoss_tune.model.expert_weight import ExpertWeight
from gptoss_tune.model.parallel.sharding import share_of

_DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.float16: "fp16"}
_DTYPE_NAMES[torch.int8] = "INT8"


@dataclass(frozen=True)
class FootprintPart:
    """One kind of weights in one precision.

    Attributes:
        kind: ``experts``, ``attention``, ``embeddings``, ``other`` or ``adapters``.
        precision: ``MXFP4``, ``NF4``, ``INT8``, ``bf16``, ``fp32``.
        parameters: Number of logical weights.
        nbytes: Bytes held, scales and quantisation state included.
    """

    kind: str
    precision: str
    parameters: int
    nbytes: int


def footprint(model: nn.Module) -> list[FootprintPart]:
    """Return what ``model`` holds here, largest first; tied tensors count once."""
    found: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    tensors = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        precision, count, nbytes = _held(tensor)
        if name.endswith(".scales"):  # of an Int8Linear, whose weights they are no more of
            precision, count = "INT8", 0
        entry = found[_kind(name), precision]
        entry[0] += count
        entry[1] += nbytes
    rows = [FootprintPart(kind, precision, *counts) for (kind, precision), counts in found.items()]
    return sorted(rows, key=lambda row: row.nbytes, reverse=True)


def describe_footprint(model: nn.Module) -> str:
    """Return the footprint as one line, for the log."""
    rows = footprint(model)
    parts = [f"{row.kind} {row.precision} {_size(row.nbytes)}" for row in rows]
    return f"holds {_size(sum(row.nbytes for row in rows))}: " + ", ".join(parts)


def _held(tensor: Tensor) -> tuple[str, int, int]:
    tensor = share_of(tensor)
    if isinstance(tensor, ExpertWeight):
        stored = tensor.stored
        if isinstance(stored, Mxfp4Weight):
            return "MXFP4", tensor.numel(), stored.nbytes
        return _DTYPE_NAMES[stored.dtype], tensor.numel(), stored.nbytes
    state = getattr(tensor, "quant_state", None)
    if state is not None:  # bitsandbytes: packed pairs, block maxima, and the code book
        extra = sum(t.nbytes for t in state.as_dict(packed=True).values() if isinstance(t, Tensor))
        return state.quant_type.upper(), state.shape.numel(), tensor.nbytes + extra
    precision = _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    return precision, tensor.numel(), tensor.nbytes


def _kind(name: str) -> str:
    if "lora_" in name:
        return "adapters"
    if ".experts." in name:
        return "experts" if not name.endswith("_bias") else "other"
    if ".self_attn." in name:
        return "attention"
    if "embed_tokens" in name or "lm_head" in name:
        return "embeddings"
    return "other"


def _size(nbytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if nbytes >= scale:
            return f"{nbytes / scale:.2f} {unit}"
    return f"{nbytes / 2**10:.1f} KiB"
