"""Which tensors a GGUF of gpt-oss holds, and how a merge's rows become their bytes.

Legend: E experts, H hidden, I intermediate; ``in`` and ``out`` of a projection.

Names, types and order are those of llama.cpp's converter for the safetensors folder of the same
merge, so that the two files are equal byte for byte. What is unlike the release:

* ``gate_up_proj``, whose rows alternate, is two tensors, gate ``[E, I, H]`` and up ``[E, I, H]``;
* a block of 32 MXFP4 values is 17 bytes, its scale first; byte j of the other 16 holds the values
  j (low nibble) and j + 16, where the release has 2j and 2j + 1;
* dense experts are ``[E, out, in]``, transposed from transformers' ``[E, in, out]``;
* norms, biases, sinks and the router are F32, whose bf16 values are merely widened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor

from gptoss_tune.export.merge.steps import Step
from gptoss_tune.weights.gguf.file import BLOCK_BYTES
from gptoss_tune.weights.names import MXFP4_BLOCK, layer_of
from gptoss_tune.weights.write import MAX_SHARD_SIZE, plan_shards

GgufType = Literal["MXFP4", "BF16", "F32"]
Half = Literal["whole", "gate", "up"]

_WITHIN_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.sinks": "attn_sinks.weight",
    **{
        f"self_attn.{ours}_proj.{part}": f"attn_{theirs}.{part}"
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output"))
        for part in ("weight", "bias")
    },
    "mlp.router.weight": "ffn_gate_inp.weight",
    "mlp.router.bias": "ffn_gate_inp.bias",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_KINDS = {
    "token_embd": "embedding",
    "output": "output",
    "attn_sinks": "sinks",
    "ffn_gate_inp": "router",
}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor to be.

    Attributes:
        name: llama.cpp's name, ``blk.0.ffn_gate_exps.weight``.
        shape: Rows first, as torch has it; the file lists it in reverse.
        type: How its values are stored.
        half: Which rows of the step's output it holds: all, the even (gate) or the odd ones (up).
    """

    name: str
    shape: tuple[int, ...]
    type: GgufType
    half: Half = "whole"

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        values, size = BLOCK_BYTES[self.type]
        return prod(self.shape) * size // values

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row, or of one expert."""
        return self.nbytes // self.shape[0]


@dataclass(frozen=True)
class GgufStep:
    """A step of the merge and the tensors that it becomes, which lie one after the other."""

    step: Step
    tensors: tuple[GgufTensor, ...]


def plan_tensors(steps: Sequence[Step]) -> list[GgufStep]:
    """Return the tensors of a GGUF in the order of its bytes.

    llama.cpp's converter takes the shards of a folder one after the other, the tensors of each by
    name, and MXFP4 stacks before all others. The order is that of the folder that a merge writes
    with shards of the usual size.
    """
    met = {
        name: position
        for position, name in enumerate(
            name
            for shard in plan_shards((s for step in steps for s in step.outputs), MAX_SHARD_SIZE)
            for name in sorted(spec.name for spec in shard.specs)
        )
    }
    paired = _with_pairs(steps)
    # Of a packed stack the scales are met last, and it is then that the converter writes it.
    paired.sort(key=lambda step: (len(step.outputs) == 1, met[step.outputs[-1].name]))
    return [GgufStep(step, tuple(_tensors_of(step))) for step in paired]


def _with_pairs(steps: Sequence[Step]) -> list[Step]:
    """Return the steps with each packed stack in one, also where its parts are merely copied."""
    copied: dict[str, dict[str, Step]] = {}
    found = []
    for step in steps:
        for part in ("_blocks", "_scales"):
            if step.kind == "copy" and step.source.endswith(part):
                copied.setdefault(step.source.removesuffix(part), {})[part] = step
                break
        else:
            found.append(step)
    for stack, parts in copied.items():
        outputs = (*parts["_blocks"].outputs, *parts["_scales"].outputs)
        found.append(Step("copy", stack, outputs))
    return found


def _tensors_of(step: Step) -> Iterable[GgufTensor]:
    """Yield the tensors that the outputs of ``step`` become."""
    first, layer = step.outputs[0], layer_of(step.outputs[0].name)
    if layer is None:
        name = _OUTSIDE[first.name]
        yield GgufTensor(name, first.shape, _dense_type(name, first.shape))
        return
    inside = first.name.removeprefix(f"model.layers.{layer}.")
    if ".experts." not in first.name:
        name = f"blk.{layer}.{_WITHIN_LAYER[inside]}"
        yield GgufTensor(name, first.shape, _dense_type(name, first.shape))
        return
    projection, part = _projection_and_part(inside.removeprefix("mlp.experts."))
    packed = len(step.outputs) == 2
    shape = step.outputs[1].shape if packed else first.shape
    if packed:
        shape = (*shape[:-1], shape[-1] * MXFP4_BLOCK)
    elif part == "weight":
        shape = (shape[0], shape[2], shape[1])
    kind: GgufType = "MXFP4" if packed else "BF16" if part == "weight" else "F32"
    if projection == "down_proj":
        yield GgufTensor(f"blk.{layer}.ffn_down_exps.{part}", shape, kind)
        return
    halved = (shape[0], shape[1] // 2, *shape[2:])
    yield GgufTensor(f"blk.{layer}.ffn_gate_exps.{part}", halved, kind, "gate")
    yield GgufTensor(f"blk.{layer}.ffn_up_exps.{part}", halved, kind, "up")


def _projection_and_part(name: str) -> tuple[str, str]:
    """Return ``("gate_up_proj", "bias")`` of ``gate_up_proj_bias``."""
    for suffix, part in (("_blocks", "weight"), ("_bias", "bias")):
        if name.endswith(suffix):
            return name.removesuffix(suffix), part
    return name, "weight"


def _dense_type(name: str, shape: tuple[int, ...]) -> GgufType:
    """Return the type of a tensor that is no expert's: F32 wherever ggml computes in it."""
    matrix = len(shape) > 1 and name.endswith(".weight") and ".ffn_gate_inp." not in name
    return "BF16" if matrix else "F32"


def rows_of(target: GgufTensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return those rows of each output of a step that ``target`` holds, as ``[..., out, in]``.

    Args:
        target: One of the tensors of the step.
        parts: Rows of each output: a tensor, or blocks ``[E, out, in/32, 16]`` and scales
            ``[E, out, in/32]``.
    """
    dense = len(parts) == 1 and target.name.endswith("_exps.weight")
    turned = [part.transpose(1, 2) if dense else part for part in parts]
    if target.half == "whole":
        return tuple(turned)
    return tuple(part[:, (0 if target.half == "gate" else 1) :: 2] for part in turned)


def encode(target: GgufTensor, parts: Sequence[Tensor]) -> Tensor:
    """Return the bytes of rows of ``target``, as uint8 on the CPU; ``parts`` as in ``rows_of``."""
    rows = rows_of(target, parts)
    if len(rows) == 2:
        return mxfp4_bytes(*rows).contiguous().view(-1)
    dense = rows[0].float() if target.type == "F32" else rows[0]
    return dense.contiguous().view(-1).view(torch.uint8)


def mxfp4_bytes(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return ggml's blocks ``[..., n * 17]`` of the release's.

    Args:
        blocks: ``[..., n, 16]`` uint8; byte j holds the values 2j (low nibble) and 2j + 1.
        scales: ``[..., n]`` uint8, E8M0, which is the same number in both.
    """
    values = torch.stack((blocks & 0xF, blocks >> 4), dim=-1).flatten(-2)
    first, second = values.chunk(2, dim=-1)
    return torch.cat((scales.unsqueeze(-1), first | (second << 4)), dim=-1).flatten(-2)


def released_blocks(data: Tensor) -> tuple[Tensor, Tensor]:
    """Return blocks ``[..., n, 16]`` and scales ``[..., n]`` as released of ggml's ``[..., n*17]``.

    The inverse of ``mxfp4_bytes``.
    """
    grouped = data.unflatten(-1, (-1, BLOCK_BYTES["MXFP4"][1]))
    scales, packed = grouped[..., 0], grouped[..., 1:]
    values = torch.cat((packed & 0xF, packed >> 4), dim=-1)
    return values[..., 0::2] | (values[..., 1::2] << 4), scales.contiguous()


def kind_of(name: str) -> str:
    """Return what a tensor is, in a word for tables."""
    inside = name.split(".", 2)[2] if name.startswith("blk.") else name
    stem, _, part = inside.rpartition(".")
    if stem.endswith("_norm"):
        return "norms"
    if stem.endswith("_exps"):
        return f"experts {stem.split('_')[1]}" if part == "weight" else "experts biases"
    if stem in _KINDS:
        return _KINDS[stem]
    return "attention" if part == "weight" else "attention biases"


def by_name(steps: Iterable[GgufStep]) -> dict[str, GgufTensor]:
    """Return the tensors of ``steps`` by their names, in the order of the file."""
    return {tensor.name: tensor for each in steps for tensor in each.tensors}
