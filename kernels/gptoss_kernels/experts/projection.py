"""One projection of all experts, and the weights a matrix product sees.

``ExpertProjection`` is what a caller hands in: the frozen weight as it is stored, its bias and a
LoRA pair. ``ExpertMatrices`` is what the products ask: "the ``[out, in]`` matrix of expert e, now".
It decodes on demand and keeps nothing, so a layer never holds a dense copy longer than one product
needs it. Rejected: decoding at load time (39 GiB instead of 13 for the 20b) and a cache of decoded
layers (the same memory again, a few layers later).
"""

# Legend: E experts, R rank, out and in as in a linear layer y = x W^T.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptoss_kernels.lora import merged_expert_reference
from gptoss_kernels.mxfp4 import MXFP4_BLOCK, Mxfp4Weight, dequantize, quantize_reference


@dataclass(frozen=True)
class ExpertProjection:
    """One projection (gate_up or down) of all experts: frozen weight, frozen bias, LoRA pair.

    Attributes:
        weight: ``Mxfp4Weight`` with blocks ``[E, out, in/32, 16]``, or dense ``[E, in, out]``
            (the layout of transformers) in any floating dtype.
        bias: ``[E, out]`` or None.
        lora_A: ``[E, R, in]`` or None. May be a view of PEFT's parameter and may be fp32 beside
            bf16 activations; its gradient then is fp32, too.
        lora_B: ``[E, out, R]`` or None; there exactly when ``lora_A`` is.
        scaling: ``alpha / rank``, a plain number.
    """

    weight: Mxfp4Weight | Tensor
    bias: Tensor | None
    lora_A: Tensor | None = None
    lora_B: Tensor | None = None
    scaling: float = 1.0

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together and base tensors that ask for a gradient."""
        experts, out_features, in_features = self.logical_shape
        if self.bias is not None:
            _expect("bias", self.bias, (experts, out_features))
        if (self.lora_A is None) != (self.lora_B is None):
            raise ValueError("lora_A and lora_B come together; got only one of them")
        if self.lora_A is not None and self.lora_B is not None:
            rank = self.lora_A.shape[1] if self.lora_A.dim() == 3 else 0
            _expect("lora_A", self.lora_A, (experts, rank, in_features))
            _expect("lora_B", self.lora_B, (experts, out_features, rank))
            if self.lora_A.dtype != self.lora_B.dtype:
                raise ValueError(
                    f"lora_A and lora_B need one dtype, got {self.lora_A.dtype} and "
                    f"{self.lora_B.dtype}"
                )
        frozen = {"bias": self.bias, "weight": self.weight}
        for name, tensor in frozen.items():
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                raise ValueError(
                    f"expert {name} has requires_grad=True; the base is frozen here and would get "
                    f"no gradient: call requires_grad_(False), or train through lora_A and lora_B"
                )

    @property
    def logical_shape(self) -> tuple[int, int, int]:
        """``(E, out, in)``."""
        if isinstance(self.weight, Mxfp4Weight):
            shape = self.weight.shape
        else:
            shape = tuple(self.weight.mT.shape) if self.weight.dim() == 3 else ()
        if len(shape) != 3:
            raise ValueError(
                "an expert weight is dense [E, in, out] or has blocks [E, out, in/32, 16]; got "
                f"{tuple(getattr(self.weight, 'blocks', self.weight).shape)}"
            )
        return shape[0], shape[1], shape[2]

    @property
    def rank(self) -> int:
        """R, 0 without a LoRA pair."""
        return 0 if self.lora_A is None else self.lora_A.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the weight lives."""
        weight = self.weight
        return weight.blocks.device if isinstance(weight, Mxfp4Weight) else weight.device


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} needs shape {shape} to fit the weight, got {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} needs a floating dtype, got {tensor.dtype}")


@dataclass(frozen=True)
class ExpertMatrices:
    """The matrices ``[N, K]`` of a projection's experts for a product ``rows @ matrix^T``.

    Attributes:
        projection: Where the weight comes from.
        dtype: The dtype the product runs in.
        transposed: False for the forward product (N out, K in), True for the gradient with respect
            to the rows (N in, K out).
        merged: Serve ``Q(W + s B A)``, the weight an MXFP4 export would hold, instead of W.
    """

    projection: ExpertProjection
    dtype: torch.dtype
    transposed: bool = False
    merged: bool = False

    @property
    def num_experts(self) -> int:
        """E."""
        return self.projection.logical_shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, K)`` of one matrix."""
        _, out_features, in_features = self.projection.logical_shape
        return (in_features, out_features) if self.transposed else (out_features, in_features)

    def expert(self, index: int) -> Tensor:
        """Return the matrix of one expert, ``[N, K]`` in ``dtype``; a view where it can be."""
        matrix = merged_mxfp4_expert(self.projection, index) if self.merged else None
        if matrix is None:
            weight = self.projection.weight
            if isinstance(weight, Mxfp4Weight):
                matrix = dequantize(weight.blocks[index], weight.scales[index], dtype=self.dtype)
            else:
                matrix = weight[index].mT
        matrix = matrix.to(self.dtype)
        return matrix.mT if self.transposed else matrix

    def stack(self) -> Tensor:
        """Return the matrices of all experts, ``[E, N, K]`` in ``dtype``, strides as they fall."""
        weight = self.projection.weight
        if isinstance(weight, Tensor) and not self.merged:
            stack = weight.mT.to(self.dtype)
            return stack.mT if self.transposed else stack
        shape = self.projection.logical_shape
        stack = torch.empty(shape, dtype=self.dtype, device=self.projection.device)
        forward = ExpertMatrices(self.projection, self.dtype, merged=self.merged)
        for index in range(self.num_experts):
            stack[index] = forward.expert(index)
        return stack.mT if self.transposed else stack


def merged_mxfp4_expert(projection: ExpertProjection, index: int) -> Tensor:
    """Return expert ``index`` as an MXFP4 export would hold it: ``Q(decode(W) + s B A)``, decoded.

    Args:
        projection: A projection; without a LoRA pair the merge changes nothing.
        index: The expert.

    Returns:
        ``[out, in]`` fp32, every value one that MXFP4 can hold.
    """
    packed = _packed_expert(projection, index)
    return dequantize(packed.blocks, packed.scales, dtype=torch.float32)


def merge_mxfp4(projection: ExpertProjection) -> Mxfp4Weight:
    """Return ``Q(decode(W) + s B A)`` of all experts, packed: what merge-aware products decode.

    A model that only answers computes with it as with a base: the same values, without rounding
    the experts again for every token. One expert is dense at a time.

    Args:
        projection: A projection; packed and without a LoRA pair its weight is returned as it is.

    Returns:
        Blocks ``[E, out, in/32, 16]`` and scales ``[E, out, in/32]``.
    """
    weight = projection.weight
    if isinstance(weight, Mxfp4Weight) and projection.lora_A is None:
        return weight
    experts, out_features, in_features = projection.logical_shape
    shape = (experts, out_features, in_features // MXFP4_BLOCK)
    scales = torch.empty(shape, dtype=torch.uint8, device=projection.device)
    blocks = torch.empty((*shape, MXFP4_BLOCK // 2), dtype=torch.uint8, device=projection.device)
    for index in range(experts):
        packed = _packed_expert(projection, index)
        blocks[index], scales[index] = packed.blocks, packed.scales
    return Mxfp4Weight(blocks, scales)


def _packed_expert(projection: ExpertProjection, index: int) -> Mxfp4Weight:
    weight = projection.weight
    if isinstance(weight, Mxfp4Weight):
        blocks, scales = weight.blocks[index], weight.scales[index]
        if projection.lora_A is None:
            return Mxfp4Weight(blocks, scales)
        base = dequantize(blocks, scales, dtype=torch.float32)
    else:
        base = weight[index].mT
    if projection.lora_A is not None and projection.lora_B is not None:
        base = merged_expert_reference(
            base, projection.lora_A[index], projection.lora_B[index], projection.scaling
        )
    return quantize_reference(base.float())
